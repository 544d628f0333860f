"""What fails beside a search loses nothing of it: the report is written with what there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

import nas_attn.api  # noqa: F401  imports what is patched below, before it is
from nas_attn.cli.main import app
from nas_attn.engine import trial_record as fields
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import NewTrial
from nas_attn.errors import DataError, NasAttnError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.study.study import Study
from nas_attn.workflows import reporting
from nas_attn.workflows import search as searching
from nas_attn.workflows.events import LogEvents
from nas_attn.workflows.records import open_store
from nas_attn.workflows.session import Session
from tests.helpers.studies import write

REPLAYED: dict[str, Any] = {
    "replay": {"seconds": 0.1},
    "execution": {"executor": "simulated"},
    "search/trials": 3,
}


@pytest.fixture
def study(tmp_path: Path, tiny_translation: PreparedData) -> Study:
    path = write(tmp_path, tiny_translation.folder, REPLAYED)
    return load_study(str(path), runs=tmp_path / "runs")


def test_what_fails_after_a_search_does_not_lose_its_report(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rank agreement, a measurement, or predictions that are no guide."""
    run = searching._by_sampler

    def fail_after(*arguments: Any, **more: Any) -> None:
        run(*arguments, **more)
        raise NasAttnError("predictions are <no> guide")

    def lack(*_: Any) -> None:
        raise DataError("the data set is gone")

    monkeypatch.setattr(searching, "_by_sampler", fail_after)
    monkeypatch.setattr(reporting, "confirmed_rows", lack)
    result = CliRunner().invoke(app, ["search", *study.typed])
    assert str(result.exception) == "predictions are <no> guide"
    report = study.folder / "report"
    assert f"report: {report}/index.html" in result.output
    page, summary = ((report / name).read_text() for name in ("index.html", "summary.md"))
    assert "The last search ended early: predictions are &lt;no&gt; guide" in page
    assert "**What was confirmed is left out: the data set is gone**" in summary
    assert len((report / "trials.csv").read_text().splitlines()) == 4
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["report", *study.typed])
    assert result.exit_code == 0, result.output
    assert 'role="alert"' not in (report / "index.html").read_text()


def end(store: TrialStore, study: Study, plan: AttentionPlan, value: float | None) -> None:
    """Write down a trial that is over."""
    costs = study.costs.known(plan)
    sizes = study.costs.sizer.size(plan)._asdict()
    number = len(store.trials())
    attributes = {
        fields.PLAN: plan.to_json(),
        fields.SIZE: sizes,
        fields.COSTS: {name: cost for name, cost in costs.items() if name not in sizes},
        fields.PROPOSAL: {"number": number, "running": []},
        fields.BASELINE: plan == study.baseline,
    }
    values = None if value is None else [value, *(costs[name] for name in study.objectives.costs)]
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    store.create(NewTrial(attributes=attributes, state=state, values=values))


def test_a_failed_baseline_is_trained_again_whatever_ended_meanwhile(study: Study) -> None:
    store = open_store(study, create=True)
    end(store, study, study.baseline, None)
    other = AttentionPlan.uniform(AttentionChoice("multi_query"), tuple(study.space.shapes))
    end(store, study, other, 3.0)
    session = Session(study, store, None, LogEvents())
    trained = session.train_baseline()
    assert trained.is_baseline and trained.is_trained
    assert len(store.trials()) == 3
    assert session.train_baseline().number == trained.number


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_queue_that_another_driver_has_lengthened_is_taken_over(
    is_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a driver would add later, knowing more results, is not what trials on record are of."""
    plans = [
        AttentionPlan.uniform(AttentionChoice.of("reduced_key", key_dim=width), ("encoder_self",))
        for width in range(4, 36, 4)
    ]
    first, theirs, own = plans[:2], plans[2], plans[3]
    kept = list(first)
    runs: list[tuple[list[AttentionPlan], int]] = []
    parts: list[tuple[str, bool]] = []

    def by_sampler(_: Any, *, queue: list[AttentionPlan], trials: int, **options: Any) -> Any:
        runs.append((list(queue), trials))
        parts.append((options["part"].text, options["part"].is_last))
        if is_ahead and len(runs) == 1:
            kept.append(theirs)
        return SimpleNamespace(has_given_up=False)

    def keep(_: Any, queue: list[AttentionPlan]) -> None:
        kept[:] = queue

    class Session:
        """A session with a record of nothing but a queue."""

        study = MagicMock()
        store = MagicMock()
        train_baseline = MagicMock()
        events = MagicMock()

        @property
        def queue(self) -> list[AttentionPlan]:
            return list(kept)

    config = Session.study.config.search
    config.strategy, config.trials, config.warm_start.ladder = "sensitivity", 4, False
    config.warm_start.longest = 1.0
    Session.store.trials.return_value = []
    stand_ins = {
        "_by_sampler": by_sampler,
        "_keep_queue": keep,
        "largest_steps": lambda *_: [SimpleNamespace(plan=own)],
    }
    others = ("target_of_study", "hold_on_baseline", "Predictions", "measure_predictions")
    for name in (*others, "_is_guide", "write_findings"):
        stand_ins[name] = MagicMock()
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(searching, name, stand_in)
    searching._by_predictions(Session())  # type: ignore[arg-type]
    together = [*first, theirs if is_ahead else own]
    assert runs == [(first, 3), (together, 4)]
    assert parts == [("round 1 of 2", False), ("round 2 of 2", True)]
    assert kept == together
