"""Warm starts: the same process as a cold start gives, and the same ends, with real fairseq."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.fairseq_tools.arguments import training_arguments
from nas_attn.fairseq_tools.commands import evaluation_command, training_command
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.models import Sizer, load_dictionaries
from nas_attn.fairseq_tools.prune import load_checkpoint
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import CHECKPOINT, SeedRun, TrialJob, TrialResult
from nas_attn.trials.processes import fork_server
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import ColdLauncher, Launcher, Running
from nas_attn.trials.processes.programs import executable_form, needs_fairseq
from nas_attn.trials.runner import TrialRun
from nas_attn.validation_log import read_report
from tests.helpers.paths import ROOT

ARGUMENTS: dict[str, Any] = {
    "criterion": "label_smoothed_cross_entropy",
    "optimizer": "adam",
    "lr": 0.003,
    "max-tokens": 512,
    "num-workers": 0,
    "dropout": 0.1,
    "share-all-embeddings": True,
} | {
    f"{side}-{name}": value
    for side in ("encoder", "decoder")
    for name, value in {
        "layers": 1, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 4,
    }.items()
}  # fmt: skip
TIMES = ("wps", "ups", "wall", "train_wall")
"""Metrics that say how fast a training is."""


def make_job(
    data: PreparedData, folder: Path, scheme: str, seed: int, *, epochs: int = 2
) -> TrialJob:
    config = TrainingConfig(arguments={**ARGUMENTS, "max-epoch": epochs})
    plan = AttentionPlan.uniform(AttentionChoice(scheme), SITES)
    sizer = Sizer.of(training_arguments(config), load_dictionaries(data, config.task))
    run = folder / f"seed-{seed}"
    training = training_command(
        config, data, plan, seed=seed, metric="loss", save_dir=run / "checkpoints"
    )
    return TrialJob(
        number=1,
        folder=str(folder),
        metric="loss",
        parameters=sizer.size(plan).total,
        runs=(SeedRun(seed=seed, folder=str(run), command=tuple(training)),),
    )


def with_evaluation(job: TrialJob, data: PreparedData) -> TrialJob:
    config = TrainingConfig(arguments=ARGUMENTS)
    generate = tuple(evaluation_command(config, data, Path(CHECKPOINT), "test"))
    runs = tuple(dataclasses.replace(run, evaluation=generate) for run in job.runs)
    return dataclasses.replace(job, runs=runs, measure=generate, measure_runs=1)


def finish(trial: TrialRun) -> TrialResult:
    deadline = time.monotonic() + 120
    while trial.result is None:
        assert time.monotonic() < deadline
        trial.poll()
        time.sleep(0.02)
    return trial.result


def outcome(job: TrialJob) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What a trial has reported, without times, and its last weights."""
    folder = Path(job.runs[0].folder)
    metrics = [
        {name: value for name, value in line["metrics"].items() if name not in TIMES}
        for line in read_report(folder)
    ]
    return metrics, load_checkpoint(folder / "checkpoints" / "checkpoint_last.pt")["model"]


def assert_same(first: TrialJob, second: TrialJob) -> None:
    (metrics, weights), (other_metrics, other_weights) = outcome(first), outcome(second)
    assert len(metrics) == 2
    assert metrics == other_metrics
    assert weights.keys() == other_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, other_weights[name]), name


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(launcher: Launcher, folder: Path, *command: str, threads: int = 1) -> Running:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    with (folder / "lock").open("w") as lock:
        return launcher.start(
            executable_form(command),
            environment=environment,
            log=folder / "log",
            keep_open=lock.fileno(),
            with_fairseq=needs_fairseq(command),
        )


def server_pid(launcher: ForkServer) -> int:
    (server,) = launcher._servers.values()
    return server._process.pid


@pytest.fixture(scope="module")
def launcher() -> Iterator[ForkServer]:
    launcher = ForkServer()
    yield launcher
    launcher.close()


@pytest.mark.slow
def test_as_good_as_cold(
    launcher: ForkServer, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """A training leaves nothing behind for the next one; evaluation and timing are warm, too."""
    cold, first, other, second = (
        make_job(tiny_translation, tmp_path / name, scheme, seed)
        for name, scheme, seed in (
            ("cold", "collaborative", 5),
            ("first", "collaborative", 5),
            ("other", "multi_head", 6),
            ("second", "collaborative", 5),
        )
    )
    results = []
    for job, by in ((cold, ColdLauncher()), (first, launcher), (other, launcher)):
        results.append(finish(TrialRun(with_evaluation(job, tiny_translation), launcher=by)))
    results.append(finish(TrialRun(second, launcher=launcher)))
    assert [result.error for result in results] == [None] * 4
    assert launcher._servers, "it was warm"
    assert_same(first, second)
    assert_same(first, cold)
    assert results[0].losses == results[1].losses == results[3].losses != results[2].losses
    assert results[0].tests == results[1].tests
    assert all(result.measured["decoding_seconds"] > 0 for result in results[:3])


@pytest.mark.slow
def test_ends_are_told(
    launcher: ForkServer, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    assert start(launcher, tmp_path, "fairseq-train", "--help").wait(60) == 0
    assert start(launcher, tmp_path, "fairseq-generate").wait(60) == 2, "argparse exits"
    absent = str(tmp_path / "absent")
    arguments = (absent, "--path", f"{absent}/model.pt")
    assert start(launcher, tmp_path, "fairseq-generate", *arguments).wait(60) == 1
    log = (tmp_path / "log").read_text()
    assert "usage: " in log
    assert "Traceback (most recent call last)" in log
    assert log.splitlines()[-1].endswith(f"No such file or directory: {absent!r}")
    command = make_job(tiny_translation, tmp_path, "multi_head", 1, epochs=1000).runs[0].command
    for number in (signal.SIGKILL, signal.SIGTERM):
        running = start(launcher, tmp_path, *command)
        assert running.poll() is None
        running.signal(number)
        assert running.wait(10) == -number
        running.signal(number)  # nobody is left, which is no error


@pytest.mark.slow
def test_a_killed_server(tiny_translation: PreparedData, tmp_path: Path) -> None:
    """Its trial ends as killed, with the training; the next start has a new server."""
    launcher = ForkServer()
    job = make_job(tiny_translation, tmp_path, "multi_head", 1, epochs=1000)
    report = Path(job.runs[0].folder) / "report.jsonl"
    try:
        trial = TrialRun(job, launcher=launcher)
        trial.poll()
        wait_for(report.exists)
        assert trial._activity is not None
        child, server = trial._activity.running.pid, server_pid(launcher)
        same_folder = TrialRun(job)
        same_folder.poll()
        assert same_folder._activity is None, "the child holds the lock"
        os.kill(server, signal.SIGKILL)
        result = finish(trial)
        assert result.failure is FailureKind.KILLED and result.failure.can_retry
        wait_for(lambda: not is_running(child))
        again = TrialRun(job, launcher=launcher)
        wait_for(lambda: again.poll() or again._activity)
        assert server_pid(launcher) != server
        lines = len(read_report(report.parent))
        wait_for(lambda: again.poll() and len(read_report(report.parent)) > lines)
        assert again._activity is not None
        child, server = again._activity.running.pid, server_pid(launcher)
    finally:
        launcher.close()
    assert not is_running(server)
    wait_for(lambda: not is_running(child))
    assert finish(again).failure is FailureKind.KILLED


@pytest.mark.slow
def test_all_die_with_the_driver(tiny_translation: PreparedData, tmp_path: Path) -> None:
    job = make_job(tiny_translation, tmp_path, "multi_head", 1, epochs=1000)
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from nas_attn.trials.job import TrialJob
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.runner import TrialRun
launcher = ForkServer()
trial = TrialRun(TrialJob.from_json({job.to_json()!r}), launcher=launcher)
trial.poll()
(server,) = launcher._servers.values()
print(server._process.pid, trial._activity.running.pid, flush=True)
time.sleep(60)
"""
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_for(lambda: not any(is_running(pid) for pid in pids), 10)


@pytest.mark.slow
def test_a_server_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a second thread a fork would be unsafe; what is asked for is started cold."""
    monkeypatch.setattr(
        fork_server,
        "_server_environment",
        lambda environment: {**environment, "JE_ARROW_MALLOC_CONF": "background_thread:true"},
    )
    launcher = ForkServer()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert start(launcher, tmp_path, "fairseq-train", "--help").wait(60) == 0
    launcher.close()
    (record,) = caplog.records
    assert "trainings start cold: the server of warm starts refused: the server has 2 threads" in (
        record.getMessage()
    )


def test_a_server_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fork_server, "_server_environment", lambda _: {"PYTHONHOME": "/absent"})
    launcher = ForkServer()
    with (tmp_path / "lock").open("w") as lock, caplog.at_level(logging.WARNING):
        running = launcher.start(
            [sys.executable, "-m", "json.tool", "--help"],
            environment=dict(os.environ),
            log=tmp_path / "log",
            keep_open=lock.fileno(),
            with_fairseq=True,
        )
    assert running.wait(20) == 0
    launcher.close()
    assert [record.getMessage() for record in caplog.records] == [
        "trainings start cold: the server of warm starts died"
    ]


def test_other_commands_start_cold(tmp_path: Path) -> None:
    launcher = ForkServer()
    assert start(launcher, tmp_path, "nas-attn-replay", "--help").wait(60) == 0
    assert not launcher._servers


def test_a_server_for_each_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server:
        def __init__(self, environment: dict[str, str]) -> None:
            self.threads = environment["OMP_NUM_THREADS"]

        def wait_until_ready(self) -> None:
            pass

        def is_alive(self) -> bool:
            return True

        def start(self, *_: Any) -> str:
            return self.threads

    monkeypatch.setattr(fork_server, "_Server", Server)
    launcher = ForkServer()
    started = [start(launcher, tmp_path, "fairseq-train", threads=n) for n in (1, 2, 1)]
    assert started == ["1", "2", "1"]
    assert list(launcher._servers) == ["1", "2"]
