"""What `search.warm_start.teacher` changes in the jobs of trials, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas_attn.engine.entries import job_entry
from nas_attn.fairseq_tools.commands import value_of
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.study.study import Study
from nas_attn.trials.job import StartFolders
from tests.helpers.studies import write

PLANS = {
    "inherits": AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=4)),
    "does not": AttentionPlan.uniform(AttentionChoice.of("head_embedding_add")),
}
BASELINE = "runs/baseline"
FROM = StartFolders(baseline=BASELINE)
TRAINED = f"{BASELINE}/seed-1/start/checkpoint_best.pt"


def study_with(folder: Path, data: PreparedData, **warm_start: Any) -> Study:
    changes = {"search/warm_start": {"source": "baseline", **warm_start}}
    return load_study(str(write(folder, data.folder, changes)), runs=folder)


@pytest.fixture
def study(tmp_path: Path, tiny_translation: PreparedData) -> Study:
    flags = {"teacher-weight": 0.25}
    return study_with(tmp_path, tiny_translation, teacher="baseline", arguments=flags)


def test_all_trials_are_taught_by_the_baseline(study: Study) -> None:
    for plan in PLANS.values():
        job = study.jobs.search_trial(1, plan, FROM)
        (run,) = job.runs
        assert value_of(run.command, "--teacher") == TRAINED
        assert job.needs == (TRAINED,)
        assert "--criterion=distilled_label_smoothed_cross_entropy" in run.command
        assert "--teacher-weight=0.25" in run.command
    warm, trained_first = (study.jobs.search_trial(1, PLANS[name], FROM) for name in PLANS)
    assert (job_entry(warm)["warm"], job_entry(trained_first)["warm"]) == (True, False)
    assert "--criterion=label_smoothed_cross_entropy" in trained_first.runs[0].start
    cold = study.jobs.cold_trial(1, PLANS["inherits"], FROM)
    assert cold.runs[0].is_trained_first
    assert value_of(cold.runs[0].command, "--teacher") == TRAINED
    assert job_entry(cold)["warm"] is False


def test_the_baseline_is_taught_by_what_it_was(study: Study) -> None:
    (run,) = study.jobs.search_trial(0, study.baseline).runs
    start = value_of(run.command, "--finetune-from-model")
    assert start is not None and start.endswith("trials/00000/seed-1/start/checkpoint_best.pt")
    assert value_of(run.command, "--teacher") == start


def test_nothing_changes_without(
    study: Study, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """Records of old hold no teacher, and go on."""
    without = study_with(tmp_path, tiny_translation)
    assert study.settings()["warm_start"]["teacher"] == "baseline"
    assert "teacher" not in without.settings()["warm_start"]
    job = without.jobs.search_trial(1, PLANS["does not"], FROM)
    assert job.needs == ()
    assert not any(word.startswith("--teacher") for word in job.runs[0].command)
    assert "--criterion=label_smoothed_cross_entropy" in job.runs[0].command


def test_on_a_ladder_the_baseline_still_teaches(study: Study) -> None:
    start = StartFolders(baseline=BASELINE, parent="runs/larger")
    job = study.jobs.search_trial(1, PLANS["inherits"], start)
    larger = "runs/larger/seed-1/checkpoints/checkpoint_best.pt"
    assert larger in job.runs[0].start
    assert value_of(job.runs[0].command, "--teacher") == TRAINED
    assert job.needs == (larger, TRAINED)
