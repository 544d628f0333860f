"""Jobs as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from nas_attn.trials.job import CHECKPOINT, SeedRun, TrialJob
from tests.helpers.trials import make_job


def test_jobs_travel_as_json(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        ([2.0], "end"),
        evaluation=("fairseq-generate", CHECKPOINT),
        measure=("fairseq-generate", CHECKPOINT),
        plan={"encoder_self": {"scheme": "shared"}},
        hang_seconds=5.0,
    )
    assert TrialJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_jobs_of_earlier_versions(tmp_path: Path) -> None:
    run = {"seed": 1, "folder": "f", "command": ["fairseq-train"]}
    old = {"number": 1, "folder": "f", "metric": "loss", "parameters": 9, "runs": [run]}
    job = TrialJob.from_json(old)
    assert job.runs == (SeedRun(seed=1, folder="f", command=("fairseq-train",)),)
    assert (job.plan, job.measure, job.hang_seconds) == ({}, (), None)
