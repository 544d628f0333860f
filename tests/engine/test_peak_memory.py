"""The most memory of a trial's trainings: read from reports, on the record, in tables, weighed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nas_attn.analysis.front import front_table, trials_table
from nas_attn.engine.config import ObjectivesConfig
from nas_attn.engine.loop import SearchLoop
from nas_attn.errors import TrialFileError
from nas_attn.trials.job import TrialJob, TrialResult
from nas_attn.trials.reports import TrialReports
from nas_attn.validation_log import read_report
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, loss_of, make_loop
from tests.helpers.trials import make_job


def write(folder: Path, *memory: object) -> None:
    """A report with a validation for each value; None is what earlier versions wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"num_updates": update, "metrics": {"loss": 1.0}, "parameters": {"total": 10}}
        | ({} if peak is None else {"memory": peak})
        for update, peak in enumerate(memory)
    ]
    (folder / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_largest_of_all_seeds(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([1.0], "end"), ([1.0], "end"), ([1.0], "end"))
    write(tmp_path / "seed-1", {"gpu": 70.5}, {"gpu": 80.5})
    write(tmp_path / "seed-2", {"gpu": 95.25}, {"gpu": 20.0})  # was continued
    write(tmp_path / "seed-3", None)
    assert TrialReports(job).result().memory == {"gpu": 95.25}


@pytest.mark.parametrize("peak", [{"gpu": -1.0}, {"gpu": "much"}, 7, {"gpu": float("inf")}])
def test_what_is_no_amount_is_refused(peak: object, tmp_path: Path) -> None:
    write(tmp_path, peak)
    with pytest.raises(TrialFileError, match="line 1: is no validation: memory"):
        read_report(tmp_path)


def run(loop: SearchLoop, kind: str, lacking: int = -1) -> None:
    """Every trial takes 100 MiB and its number."""

    def train(job: TrialJob) -> TrialResult:
        memory = {} if job.number == lacking else {kind: 100.0 + job.number}
        return TrialResult(losses=(loss_of(job),), seconds=1.0, memory=memory)

    FakeExecutor(error=train).run(loop)


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_it_is_on_the_record(kind: str, tmp_path: Path) -> None:
    """And in tables behind all columns that were there, if it is of a GPU."""
    loop = make_loop(tmp_path, trials=4)
    run(loop, kind)
    trials = loop.store.trials()
    assert [trial.memory for trial in trials] == [{kind: 100.0 + n} for n in range(4)]
    plain = [replace(trial, memory={}) for trial in trials]
    for made, before in (
        (trials_table(trials), trials_table(plain)),
        (front_table(trials, OBJECTIVES), front_table(plain, OBJECTIVES)),
    ):
        more = ["gpu_memory"] if kind == "gpu" else []
        assert [*made.columns] == [*before.columns, *more]
        if more:
            assert (made["gpu_memory"] == 100.0 + made["trial"]).all()


def test_it_can_be_an_objective(tmp_path: Path) -> None:
    loop = make_loop(
        tmp_path, trials=5, objectives=replace(OBJECTIVES, costs=("total", "peak_memory"))
    )
    run(loop, "gpu", lacking=3)
    trials = loop.store.trials()
    assert trials[3].reason == "its trainings did not report their peak_memory"
    for trial in (*trials[:3], trials[4]):
        assert trial.values == (trial.loss, trial.costs["total"], 100.0 + trial.number)


def test_it_cannot_come_first() -> None:
    with pytest.raises(ValueError, match="peak_memory is known only after training"):
        ObjectivesConfig(costs=["peak_memory"])
    assert ObjectivesConfig(costs=["total", "peak_memory"]).costs[1] == "peak_memory"
