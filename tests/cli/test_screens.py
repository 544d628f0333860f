"""The screens: nothing of a trial is cut, nothing is markup, and a terminal is not overrun."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console, RenderableType

from nas_attn.cli import live
from nas_attn.cli.console import console
from nas_attn.cli.parts import PlanTable, Screen, plain
from nas_attn.cli.screens import SearchDisplay, rate_text, status_line, status_screen
from nas_attn.cli.tables import confirmation_table
from nas_attn.cli.trial_tables import failure_text, front_plot, front_table, latest_table
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.snapshot import Snapshot
from nas_attn.engine.status import ChildStudy, RunningStatus, Status
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.failures import FailureKind
from nas_attn.workflows.confirm import failed_by_trial
from nas_attn.workflows.events import Run
from nas_attn.workflows.values import status_values
from tests.helpers.fakes import (
    OBJECTIVES,
    FakeExecutor,
    fail_trial_3,
    kill_drivers,
    make_loop,
)

EVIL = "[red]error[/] [/] [link=x]:smile: \x1b[31m\x07end"
SHOWN = "[red]error[/] [/] [link=x]:smile:  [31m end"


def render(part: RenderableType, width: int = 120, height: int = 50, encoding: str = "") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding) if encoding else io.StringIO()
    console = Console(file=file, width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    loop = make_loop(tmp_path_factory.mktemp("search"))
    FakeExecutor(error=fail_trial_3).run(loop)
    found = loop.snapshot()
    kill_drivers()
    return found


@pytest.fixture(scope="module")
def status(snapshot: Snapshot) -> Status:
    running = replace(snapshot.trained[0], number=90, curve={5: 3.0, 10: 2.5}, ended=None)
    waiting = replace(snapshot.trained[1], number=91, curve={}, ended=None)
    return Status(
        name="study",
        now=(running.started or 0.0) + 75,
        budget=20,
        trials=snapshot.trained,
        unfinished=[
            RunningStatus(trial=running, driver="here-1", is_alive=True),
            RunningStatus(trial=waiting, driver="there-2", is_alive=False),
        ],
        drivers=["here-1"],
        children=[ChildStudy(name="cold", finished=3, running=1, failed=2, drivers=("here-1",))],
    )


def with_failure(status: Status, reason: str) -> Status:
    failed = replace(
        status.trials[-1],
        number=77,
        state=TrialState.FAIL,
        loss=None,
        losses=(),
        point=None,
        failure="training_error",
        reason=reason,
        folder="runs/trials/00077",
    )
    return replace(status, trials=[*status.trials, failed])


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_status_says_all_of_every_trial(status: Status, width: int) -> None:
    text = render(status_screen(status, OBJECTIVES), width)
    for trial in status.front:
        assert squeezed(trial.text) in squeezed(text) or width == 120
        assert f"{trial.loss:.4f}" in text
    assert max(map(len, text.splitlines())) <= width
    everything = squeezed(text)
    for part in (
        "study: 11 of 20 finished, 0 stopped early, 1 running, 1 interrupted, 0 failed",
        "1 driver active",
        "11 trials in all",
        "beside, cold: 3 finished, 2 failed, 1 running, drivers: here-1",
        "by here-1",
        "interrupted; its driver was there-2",
        "1 min 15 s",
        "total parameters",
        "validation loss",
        "baseline",
    ):
        assert squeezed(part) in everything


def test_nothing_is_markup(status: Status) -> None:
    evil = with_failure(replace(status, name=EVIL), EVIL)
    unfinished = [replace(running, driver=EVIL) for running in evil.unfinished]
    children = [ChildStudy(name=EVIL, finished=1, running=0, failed=0, drivers=())]
    evil = replace(evil, unfinished=unfinished, children=children)
    objectives = Objectives(metric="[bold]loss[/]", maximise=False, costs=("total",), limits={})
    text = render(status_screen(evil, objectives), 200)
    assert f"{SHOWN}: 11 of 20 finished" in text
    assert f"beside, {SHOWN}: 1 finished" in text
    assert f"by {SHOWN}" in text
    assert f"trial 77 failed (training_error): {SHOWN}" in text
    assert "validation [bold]loss[/]" in text
    assert text.count("[bold]loss[/]") > 2
    assert "\x1b" not in text


def test_plans_are_shown_as_they_are() -> None:
    table = PlanTable(title="[i]t", columns=["[b]a"], rows=[(["[u]1"], plain(f"plan {EVIL}"))])
    for width in (40, 120):
        text = render(table, width)
        for part in ("[i]t", "[b]a", "[u]1"):
            assert part in text
        assert squeezed(f"plan {SHOWN}") in squeezed(text)


def test_the_console_of_the_command_interprets_nothing() -> None:
    with console.capture() as capture:
        console.print("report: [red]x[/] :smile:")
    assert capture.get() == "report: [red]x[/] :smile:\n"


def test_a_long_reason_is_brief_in_the_status_only(status: Status) -> None:
    reason = "ended with status 1:\nTraceback\n  one\n  two\nValueError: [/]"
    trial = with_failure(status, reason).failed[0]
    assert failure_text(trial).endswith(reason)
    brief = failure_text(trial, brief=True)
    assert brief.endswith("1:\n... ValueError: [/]\n(logs: runs/trials/00077)")
    assert "Traceback" not in render(status_screen(with_failure(status, reason), OBJECTIVES))
    assert "no reason on record" in failure_text(replace(trial, reason=None), brief=True)


def test_only_the_latest_failures_are_shown(status: Status) -> None:
    first = with_failure(status, "why")
    trials = [*first.trials, *(replace(first.trials[-1], number=100 + i) for i in range(6))]
    text = render(status_screen(replace(first, trials=trials), OBJECTIVES))
    assert "7 trials failed, the latest:" in text
    assert "trial 105 failed" in text
    assert "trial 77 failed" not in text


def test_a_study_without_a_trial() -> None:
    empty = Status(name="study", now=0.0, budget=5, trials=[])
    text = render(status_screen(empty, OBJECTIVES))
    assert "0 of 5 finished" in text
    assert "no driver active" in text
    assert "nothing to plot yet" in text
    assert rate_text(empty) == "no driver active"


def test_a_driver_that_works_beside_is_active(status: Status) -> None:
    """Between trials of a search, single conversions may be measured."""
    beside = ChildStudy(name=EVIL, finished=32, running=2, failed=0, drivers=("here-2",))
    status = replace(status, unfinished=[], drivers=[], children=[beside])
    assert "0 running and 2 beside" in status_line(status)
    assert f"1 driver active on {SHOWN}" in render(status_screen(status, OBJECTIVES), 200)
    assert status_values(status, OBJECTIVES)["drivers"] == ["here-2"]
    dead = replace(status, children=[replace(beside, drivers=())])
    assert rate_text(dead).startswith("no driver active")
    assert "beside" not in status_line(dead)


def test_no_front_is_printed_between_rounds(
    snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    """It would look like the end of the search."""
    caplog.set_level(logging.INFO)
    shown = {}
    for part in ("round 1 of 2", "round 2 of 2"):
        events = live.TerminalEvents()
        is_last = part == "round 2 of 2"
        with console.capture() as capture:
            run = Run(
                title="study",
                objectives=OBJECTIVES,
                workers=2,
                is_search=True,
                part=part,
                is_last=is_last,
            )
            events.on_start(run, lambda: snapshot)
            events.on_change(lambda: snapshot)
            events.on_end(lambda: snapshot)
        shown[is_last] = capture.get()
        assert f"study, {part}" in shown[is_last]
        assert f"{part}: 11 of 12 finished" in caplog.text
    beside = Run(title="study, the baseline", objectives=OBJECTIVES, workers=2, is_search=False)
    events.on_start(beside, lambda: snapshot)
    events.on_change(lambda: snapshot)
    assert caplog.messages[-1].startswith("study, the baseline: 11 of 12 finished")
    assert "front so far" in shown[True]
    assert "front so far" not in shown[False]


def test_ascii_only(status: Status) -> None:
    render(status_screen(status, OBJECTIVES), 80, encoding="ascii").encode("ascii")


@pytest.mark.parametrize("height", [5, 18, 24, 40, 200])
@pytest.mark.parametrize("width", [80, 120])
def test_a_screen_fits_the_terminal(
    status: Status, snapshot: Snapshot, width: int, height: int
) -> None:
    live = SearchDisplay("study", OBJECTIVES, 2, is_live=True)
    live.update(lambda: snapshot, now=True)
    for screen in (status_screen(status, OBJECTIVES, fits=True), live):
        text = render(screen, width, height)
        assert len(text.splitlines()) < height
        assert ("total parameters" in text) == (height >= 18)
        assert ("window too short: " in text) == (height < 40) or height == 40


def test_a_table_is_shortened_before_it_is_left_out() -> None:
    rows = [([str(i)], plain("plan")) for i in range(9)]
    table = PlanTable(title="all", columns=["trial"], rows=rows)
    text = render(Screen(parts=[("all", table)], fits=True), height=8)
    assert text.splitlines()[0].strip() == "all: the first 4 of 9"
    assert len(text.splitlines()) == 6


def test_the_display_of_a_search(snapshot: Snapshot) -> None:
    """The plot and the last trials are on terminals only, and what is shown last is whole."""
    lines = SearchDisplay("study", OBJECTIVES, 2)
    lines.update(lambda: snapshot, now=True)
    text = render(lines)
    assert "front so far" in text
    assert "last trials" not in text
    assert "validation loss" not in text
    live = SearchDisplay("study", OBJECTIVES, 2, is_live=True)
    assert "starting ..." in render(live)
    live.update(lambda: snapshot, now=True)
    assert "front so far" not in render(live, height=24)
    live.close(lambda: snapshot)
    text = render(live, height=24)
    for part in ("validation loss", "last trials", "front so far"):
        assert part in text
    other = SearchDisplay("confirmed", OBJECTIVES, 2, is_live=True, has_front=False)
    other.update(lambda: snapshot, now=True)
    assert "validation loss" not in render(other)


def quality(trials: Sequence[TrialRecord], index: int, loss: float) -> list[TrialRecord]:
    changed = list(trials)
    changed[index] = replace(changed[index], loss=loss)
    return changed


def test_one_that_diverged_does_not_hide_the_rest(snapshot: Snapshot) -> None:
    off = next(
        i
        for i, trial in enumerate(snapshot.trained)
        if trial not in snapshot.front and not trial.is_baseline
    )
    for loss, maximise in ((1e6, False), (-1e6, True)):
        objectives = replace(OBJECTIVES, maximise=maximise)
        plot = front_plot(
            quality(snapshot.trained, off, loss), snapshot.front, snapshot.baseline, objectives
        )
        text = render(plot)
        assert "far worse left out" in text
        assert "1000000" not in text
    plot = front_plot(snapshot.trained, snapshot.front, snapshot.baseline, OBJECTIVES)
    assert "●" in render(plot)
    assert "◆" in render(plot)


def test_tables_of_trials(snapshot: Snapshot) -> None:
    text = render(front_table(snapshot.front, snapshot.baseline, OBJECTIVES))
    assert text.splitlines()[0].strip() == "front so far"
    assert text.splitlines()[1].split() == ["trial", "total", "change", "effective", "loss",
                                            "change", "plan"]  # fmt: skip
    latest = render(latest_table(snapshot.latest, OBJECTIVES)).splitlines()
    assert latest[2].split()[0] == str(snapshot.latest[-1].number)


def test_watching_without_a_terminal_says_changes(
    status: Status, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    later = with_failure(status, "why")
    seen = iter([status, replace(status, now=status.now + 9), later])

    def look() -> Status:
        try:
            return next(seen)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(live.time, "sleep", lambda seconds: None)
    with caplog.at_level(logging.INFO):
        live.watch_status(look, OBJECTIVES, 1.0)
    assert [message.split(";")[0] for message in caplog.messages] == [
        status_line(status),
        status_line(later),
    ]


def test_a_failed_confirmation_goes_by_the_number_of_the_search(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=4)
    FakeExecutor(workers=1).run(loop)
    searched = loop.store.trials()
    own = replace(searched[3], number=1, failure=FailureKind.OUT_OF_MEMORY, reason="no room")
    (failed,) = failed_by_trial([searched[0], own], searched)
    text = failure_text(failed, what="the confirmation of")
    assert text == "the confirmation of trial 3 failed (out_of_memory): no room"


def test_a_confirmed_plan_has_a_line_a_score() -> None:
    """Where the numbers leave it too few columns, a plan stands below them, whole."""
    plan = "encoder_self [2x none(output_bias=True) | single_head(narrow_output=True)]"

    def row(score: str, mean: float, **values: Any) -> dict[str, Any]:
        shared = {"score": score, "mean": mean, "error": 0.01, "baseline": False}
        return dict.fromkeys(("verdict", "change", "interval")) | shared | values

    worse = {"trial": 2, "plan": plan, "cost": 2_073_536, "verdict": "worse"}
    rows = [
        row("validation nll_loss", 2.7660, change=0.1378, interval=0.0264, **worse),
        row("test bleu", 33.21, change=-2.48, interval=6.6, **worse | {"verdict": "noise"}),
        row("validation nll_loss", 2.6, trial=0, plan="mha", cost=3_953_664, baseline=True),
    ]
    lines = render(confirmation_table(rows, "non_embedding"), 80).splitlines()
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["2", "2,073,536"],
        ["test", "bleu"],
        plan.split()[:2],
        ["0", "3,953,664"],
    ]
    assert lines[4].strip() == plan
    assert len({line.index("±") for line in lines if "nll_loss" in line}) == 1
    wide = render(confirmation_table(rows, "non_embedding"), 200)
    assert any("2,073,536  valid nll_loss" in line and plan in line for line in wide.splitlines())
    assert "test bleu 33.21 ±0.01 -2.48 ±6.60 noise" in [" ".join(line.split()) for line in lines]
    assert "standard error" in wide
