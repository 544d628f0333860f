"""One trial, with a stand-in for fairseq-train: results, failures, interruption, repair."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.plan import AttentionPlan
from nas_attn.training import worker
from nas_attn.training.pruning import Pruned
from nas_attn.training.worker import (
    SeedRun,
    TrialJob,
    TrialResult,
    TrialRun,
    checkpoint_is_whole,
    read_report,
)

STAND_IN = """
import json, os, sys, time
losses, parameters, ending = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open(os.environ["NAS_ATTN_REPORT"], "a") as report:
    for update, loss in enumerate(losses):
        size = {"total": parameters}
        phase, loss = loss if isinstance(loss, list) else (None, loss)
        line = {"num_updates": update, "metrics": {"loss": loss}, "parameters": size}
        line["phase"] = phase
        report.write(json.dumps(line) + "\\n")
print("working with", os.environ["OMP_NUM_THREADS"], "threads", flush=True)
if ending == "hang":
    time.sleep(60)
if ending == "fail":
    raise ValueError("no such thing")
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def executable(command: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-c", STAND_IN, *command]

    monkeypatch.setattr(worker, "executable_form", executable)


def make_job(folder: Path, *runs: tuple[list[Any], str], parameters: int = 10) -> TrialJob:
    return TrialJob(
        number=3,
        folder=str(folder),
        metric="loss",
        parameters=10,
        runs=tuple(
            SeedRun(
                seed=seed,
                folder=str(folder / f"seed-{seed}"),
                command=(json.dumps(losses), str(parameters), ending),
            )
            for seed, (losses, ending) in enumerate(runs, start=1)
        ),
    )


def finish(trial: TrialRun, seconds: float = 20.0) -> TrialResult:
    deadline = time.monotonic() + seconds
    while trial.result is None:
        assert time.monotonic() < deadline
        trial.poll()
        time.sleep(0.02)
    return trial.result


def test_the_best_loss_of_each_seed(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, ([3.0, 1.0, 2.0], "end"), ([4.0, 2.0], "end"))))
    assert result.error is None
    assert result.losses == (1.0, 2.0)
    assert result.loss == 1.5
    assert result.seconds > 0
    log = (tmp_path / "seed-1" / "train.log").read_text()
    assert log == "working with 1 threads\n"


def test_progress_is_told_once(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([3.0, 1.0], "end"), ([4.0], "end")))
    news = []
    while trial.result is None:
        news += trial.poll()
        time.sleep(0.02)
    assert [(n.seed, n.num_updates, n.loss) for n in news] == [
        (1, 0, 3.0),
        (1, 1, 1.0),
        (2, 0, 4.0),
    ]
    assert trial.poll() == []


@pytest.mark.parametrize(
    ("losses", "ending", "parameters", "error"),
    [
        ([1.0], "fail", 10, r"seed 1\) ended with status 1:\n.*ValueError: no such thing"),
        ([], "end", 10, "ended without a validation"),
        ([math.nan], "end", 10, "the validation loss of seed 1 is nan"),
        ([1.0], "end", 11, "counted 10 parameters, but fairseq built 11"),
    ],
)
def test_errors_are_results(
    losses: list[float], ending: str, parameters: int, error: str, tmp_path: Path
) -> None:
    result = finish(TrialRun(make_job(tmp_path, (losses, ending), parameters=parameters)))
    assert result.losses == ()
    assert result.error is not None
    assert re.search(error, result.error, re.DOTALL)


def test_what_was_better_before_pruning_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = AttentionPlan.parse('{"encoder_self": {"scheme": "grouped_head", "kept_heads": 2}}')

    def prune(path: Path, out: Path) -> Pruned:
        assert path.parent == out.parent
        return Pruned(plan, {}, (2, 1), (2, 1))

    monkeypatch.setattr(worker, "prune_checkpoint", prune)
    lines = [["training", 0.5], ["voting", 0.4], ["settled", 2.0], ["settled", 1.0]]
    job = make_job(tmp_path, (lines, "end"), (lines[:3], "end"))
    result = finish(TrialRun(job))
    assert result.losses == (1.0, 2.0)
    assert result.plans == (plan.to_json(), plan.to_json())
    assert finish(TrialRun(job)).plans == result.plans, "also when it is looked at again"


def test_a_training_that_ends_before_its_vote(tmp_path: Path) -> None:
    lines = [["training", 0.5], ["voting", 0.4]]
    result = finish(TrialRun(make_job(tmp_path, (lines, "end"))))
    assert result.error is not None
    assert "ended before the vote was over (voting): vote earlier or train longer" in result.error


def test_a_metric_that_fairseq_does_not_log(tmp_path: Path) -> None:
    job = TrialJob.from_json({**make_job(tmp_path, ([1.0], "end")).to_json(), "metric": "bleu"})
    result = finish(TrialRun(job))
    assert result.error == "fairseq logged no metric 'bleu'; it logged loss"


def test_a_killed_training(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([1.0], "hang")))
    trial.poll()
    assert trial._process is not None
    os.kill(trial._process.pid, signal.SIGKILL)
    assert finish(trial).error == "fairseq-train (seed 1) was killed by SIGKILL"


def test_stopping_and_going_on(tmp_path: Path) -> None:
    """A finished seed is not trained again; the interrupted one is; time adds up."""
    trial = TrialRun(make_job(tmp_path, ([1.0], "end"), ([2.0], "hang")))
    while not (tmp_path / "seed-2" / "train.log").exists():
        trial.poll()
        time.sleep(0.02)
    trial.stop()
    assert trial.result is None
    first_log = (tmp_path / "seed-1" / "train.log").stat().st_mtime_ns
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"), ([2.0], "end"))))
    assert result.losses == (1.0, 2.0)
    assert (tmp_path / "seed-1" / "train.log").stat().st_mtime_ns == first_log


def test_trainings_die_with_their_driver(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.training.test_worker import *
worker.executable_form = lambda command: [sys.executable, "-c", STAND_IN, *command]
trial = TrialRun(make_job(Path({str(tmp_path)!r}), ([1.0], "hang")))
trial.poll()
print(trial._process.pid, flush=True)
time.sleep(60)
"""
    import subprocess

    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_one_training_in_a_folder(tmp_path: Path) -> None:
    first = TrialRun(make_job(tmp_path, ([1.0], "hang")))
    first.poll()
    second = TrialRun(make_job(tmp_path, ([2.0], "end")))
    for _ in range(5):
        second.poll()
    assert second._process is None
    first.stop()
    assert finish(second).losses == (2.0,)


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


def test_cut_off_checkpoints_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    best, last = folder / "checkpoint_best.pt", folder / "checkpoint_last.pt"
    torch.save({"weights": torch.ones(1000)}, best)
    last.write_bytes(best.read_bytes()[:-200])
    assert checkpoint_is_whole(best)
    assert not checkpoint_is_whole(last)
    worker._repair_checkpoints(folder)
    assert last.read_bytes() == best.read_bytes()
    best.write_bytes(b"")
    last.write_bytes(b"nonsense")
    worker._repair_checkpoints(folder)
    assert not list(folder.iterdir())


def test_jobs_travel_as_json(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([1.0], "end"), ([2.0], "end"))
    assert TrialJob.from_json(json.loads(json.dumps(job.to_json()))) == job
