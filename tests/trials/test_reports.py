"""Reports: what a training writes, and what may have been written by anyone, or half."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nas_attn import validation_log
from nas_attn.trials import runner
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.runner import TrialRun
from nas_attn.validation_log import REPORT_VARIABLE, Report, read_report, report_validation
from tests.helpers.trials import finish, make_job, stand_in, wait_for


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "executable_form", stand_in)


def line_of(update: int, loss: Any, **more: Any) -> dict[str, Any]:
    sizes = {"total": 10}
    return {
        "time": 1.0,
        "num_updates": update,
        "parameters": sizes,
        "metrics": {"loss": loss},
    } | more


def write_report(folder: Path, *lines: Any) -> None:
    """Dictionaries as a training writes them; bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "report.jsonl").open("wb") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")


def losses_in(folder: Path) -> list[tuple[int, float]]:
    return [(line["num_updates"], line["metrics"]["loss"]) for line in read_report(folder)]


@pytest.mark.parametrize("left", [b"", b"whole\n", b'{"time": 1.0, "num_upd', b"\n"])
def test_half_a_line_does_not_swallow_the_next(
    left: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.jsonl"
    path.write_bytes(left)
    monkeypatch.setenv(REPORT_VARIABLE, str(path))
    report_validation(20, {"total": 10}, {"loss": 3.745})
    report_validation(30, {"total": 10}, {"loss": 3.9})
    lines = path.read_bytes().removeprefix(left).removeprefix(b"\n").splitlines()
    assert [json.loads(line)["num_updates"] for line in lines] == [20, 30]
    if b"whole" not in left:
        assert losses_in(tmp_path) == [(20, 3.745), (30, 3.9)]


def test_what_earlier_versions_wrote_behind_half_a_line_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = b'{"time": 1.5, "epoch": 2, "num_upd'
    write_report(tmp_path, line_of(10, 3.8961), half, line_of(20, 3.745), half + b"\n")
    report = Report(tmp_path)
    assert [line["num_updates"] for line in report.lines()] == [10, 20]
    report.lines()
    assert caplog.messages == [
        f"{tmp_path}/report.jsonl, line 3: was truncated as it was written, and is left out"
    ]


def test_a_line_that_is_being_written_is_none_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_report(tmp_path, line_of(10, 3.0), b'{"time": 1.5, "epoch"')
    assert len(Report(tmp_path).lines()) == 1
    assert not caplog.messages


def test_reports_survive_half_lines_and_repeats(tmp_path: Path) -> None:
    lines = [
        {"num_updates": 20, "metrics": {"loss": 2.0}},
        {"num_updates": 10, "metrics": {"loss": 3.0}},
        {"num_updates": 20, "metrics": {"loss": 1.5}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"num_upd'
    (tmp_path / "report.jsonl").write_text(text)
    assert [(x["num_updates"], x["metrics"]["loss"]) for x in read_report(tmp_path)] == [
        (10, 3.0),
        (20, 1.5),
    ]
    assert read_report(tmp_path / "absent") == []


def test_going_back_and_losses_that_are_no_numbers(tmp_path: Path) -> None:
    odd = [math.nan, math.inf, -math.inf]
    write_report(tmp_path, *(line_of(i, loss) for i, loss in enumerate(odd)), line_of(0, 2.0))
    found = losses_in(tmp_path)
    assert [update for update, _ in found] == [0, 1, 2]
    assert [loss for _, loss in found] == [2.0, math.inf, -math.inf]


ODD = [
    b"\xff\n",
    b"3\n",
    b"null\n",
    b"\0" * 200 + b"\n",
    b"[" * 100_000 + b"\n",
    {"num_updates": 5},
    {"num_updates": 5, "metrics": None},
    line_of(5, "3.0"),
    line_of(5, None),
    line_of(5, True),
    line_of(5, 10**400),
    line_of(10**12, 3.0),
    line_of(-1, 3.0),
    line_of(True, 3.0),
    line_of(5.0, 3.0),  # type: ignore[arg-type]
    line_of(5, 3.0, parameters=[10]),
    line_of(5, 3.0, phase=1),
    b'{"time": 1.0, "num_updates": ' + b"9" * 5000 + b', "metrics": {"loss": 1.0}}\xfe\n',
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:30])
def test_an_odd_line_fails_its_trial_in_words(odd: Any, tmp_path: Path) -> None:
    """Whether it was there before the training began, or comes as it runs."""
    write_report(tmp_path / "seed-1", line_of(0, 4.0), odd)
    trial = TrialRun(make_job(tmp_path, ([3.0], "hang")))
    result = finish(trial)
    assert result.failure is FailureKind.DAMAGED
    assert result.error is not None
    assert f"{tmp_path}/seed-1/report.jsonl, line 2: is " in result.error
    assert len(result.error) < 600
    assert trial.spent().updates == 0


def test_an_odd_line_ends_the_process_too(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([3.0], "family")))
    wait_for(trial.poll)
    activity = trial._activity
    assert activity is not None
    with (tmp_path / "seed-1" / "report.jsonl").open("a") as report:
        report.write("null\n")
    assert finish(trial).failure is FailureKind.DAMAGED
    assert activity.running.poll() is not None
    assert finish(trial).seconds > 0


def test_reports_are_read_when_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = validation_log._read_report

    def counted(path: Path) -> Any:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(validation_log, "_read_report", counted)
    trial = TrialRun(make_job(tmp_path, ([1.0], "hang")))
    wait_for(trial.poll)
    for _ in range(20):
        trial.poll()
    trial.stop()
    assert len(reads) == 1


def test_a_report_of_an_ended_training_that_is_gone(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([3.0], "end"))
    assert finish(TrialRun(job)).losses == (3.0,)
    (tmp_path / "seed-1" / "report.jsonl").unlink()
    result = finish(TrialRun(job))
    assert result.failure is FailureKind.DAMAGED
    assert result.error is not None and "holds no loss, but the training has ended" in result.error
