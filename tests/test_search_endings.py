"""What fails beside a search loses nothing of it: the report is written with what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from nas_attn.workflows.session import Session, open_store
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
