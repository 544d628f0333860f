"""One trial, with stand-ins for fairseq's commands: results, failures, interruption."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nas_attn.trials import runner, steps
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import CHECKPOINT, TrialJob, TrialResult, Validation
from nas_attn.trials.reports import TrialReports
from nas_attn.trials.runner import TrialRun
from nas_attn.validation_log import read_report
from tests.helpers.trials import (
    GENERATED,
    MODELLED,
    finish,
    is_running,
    make_job,
    pid_of,
    stand_in,
    wait_for,
)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "executable_form", stand_in)


def test_the_best_loss_of_each_seed(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, ([3.0, 1.0, 2.0], "end"), ([4.0, 2.0], "end"))))
    assert result.error is None
    assert result.losses == (1.0, 2.0)
    assert result.loss == 1.5
    assert result.seconds > 0
    log = (tmp_path / "seed-1" / "train.log").read_text()
    assert log == "working with 1 threads\n"


FAULTS = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(size):
    bytearray(b"x") * size
use(1 << 26)
before = faults()
for _ in range(20):
    use(1 << 26)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.parametrize("given", [False, True])
def test_memory_that_is_freed_stays_with_the_process(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nobody says otherwise: 64 MiB are 16,384 pages to map at each use."""
    for name, value in runner.KEEP_MEMORY.items():
        monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(name, "65536" if value == "0" else "131072")
    program = [sys.executable, "-c", FAULTS]
    monkeypatch.setattr(runner, "executable_form", lambda _: program)
    trial = TrialRun(make_job(tmp_path, ([1.0], "end")))
    finish(trial)
    pages = int((tmp_path / "seed-1" / "train.log").read_text())
    assert pages > 200 if given else pages < 100


def test_trainings_do_not_look_for_the_rest_of_a_slurm_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq would wait for processes on all its nodes, or take one port for all trainings."""
    from fairseq.dataclass.configs import DistributedTrainingConfig
    from fairseq.distributed import utils

    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    trial = TrialRun(make_job(tmp_path, ([1.0], "end")), device="4,5")
    step = steps.next_step(trial.job)
    assert step is not None
    environment = trial._environment(step)
    assert environment["SLURM_CPUS_ON_NODE"] == "8"
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5"

    def method() -> str | None:
        config = DistributedTrainingConfig(
            distributed_world_size=2, distributed_no_spawn=True, tpu=False
        )
        utils.infer_init_method(config)
        return config.distributed_init_method

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("subprocess.check_output", lambda *_: 1 / 0)  # scontrol of Slurm
    with pytest.raises(ZeroDivisionError):
        method()
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    assert len({method() for _ in range(5)}) > 1, "each training has a port of its own"


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


def test_progress_says_where_a_training_is(tmp_path: Path) -> None:
    lines = [["training", 3.0], ["settled", 2.0]]
    trial = TrialRun(make_job(tmp_path, ([4.0], "end"), (lines, "fail")))
    news: list[Validation] = []
    while trial.result is None:
        news += trial.poll()
    places = [(n.seed_index, n.validation, n.settled) for n in news]
    assert places == [(0, 1, True), (1, 1, False), (1, 2, True)]


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ({"last_update": 1}, [(2, 1)]),
        ({"last_epoch": 5}, [(2, 0), (2, 1)]),
        ({"last_epoch": 6}, []),
        ({"last_epoch": 6, "last_update": 1}, [(2, 1)]),
        ({}, []),
    ],
)
def test_progress_says_when_a_trial_is_about_to_end(
    end: dict[str, int], last: list[tuple[int, int]], tmp_path: Path
) -> None:
    """That is in the last epoch of its last seed; the stand-in is always in its fifth."""
    trial = TrialRun(make_job(tmp_path, ([4.0, 3.0], "end"), ([4.0, 2.0], "end"), **end))
    news: list[Validation] = []
    while trial.result is None:
        news += trial.poll()
    assert [(n.seed, n.num_updates) for n in news if n.is_last] == last


def start_of(ending: str, *losses: float) -> tuple[str, ...]:
    return ("fairseq-train", json.dumps(losses), "10", ending)


def test_a_start_comes_first_and_counts_for_time_only(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([3.0, 2.0], "end"), start=start_of("end", 1.0, 0.5, 0.4))
    trial = TrialRun(job)
    news: list[Validation] = []
    while trial.result is None:
        news += trial.poll()
    assert [(n.num_updates, n.loss, n.is_start) for n in news] == [
        (0, 1.0, True),
        (1, 0.5, True),
        (2, 0.4, True),
        (0, 3.0, False),
        (1, 2.0, False),
    ]
    assert trial.result.losses == (2.0,)
    assert trial.result.updates == 3
    assert len(read_report(tmp_path / "seed-1" / "start")) == 3
    commands = (tmp_path / "commands.sh").read_text().splitlines()
    assert [line.split()[2] for line in commands] == ["'[1.0,", "'[3.0,"]
    again = TrialRun(job)
    assert finish(again).updates == 3
    assert (tmp_path / "seed-1" / "start.log").read_text().count("working") == 1


def test_a_start_that_fails(tmp_path: Path) -> None:
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"), start=start_of("fail", 1.0))))
    assert result.failure == "training_error"
    assert "no such thing" in (result.error or "")
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"), start=start_of("end", math.nan))))
    assert result.failure == "not_finite"
    assert not (tmp_path / "seed-1" / "train.log").exists()


def test_a_start_that_hangs_is_killed_and_made_again(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([3.0], "end"), start=start_of("hang", 1.0), hang_seconds=1.5)
    assert finish(TrialRun(job)).failure == "hung"
    mended = dataclasses.replace(
        job, runs=(dataclasses.replace(job.runs[0], start=start_of("end", 1.0)),)
    )
    result = finish(TrialRun(mended))
    assert result.losses == (3.0,)
    assert result.seconds > 1.5


@pytest.mark.parametrize(
    ("losses", "ending", "parameters", "kind", "error"),
    [
        ([1.0], "fail", 10, "training_error", r"status 1:\n.*ValueError: no such thing"),
        ([], "end", 10, "training_error", "ended without a validation"),
        ([1.0, math.nan], "end", 10, "not_finite", "the validation loss of seed 1 is nan"),
        ([1.0], "end", 11, "training_error", "counted 10 parameters, but fairseq built 11"),
        ([1.0], "sayCUDA out of memory. Tried", 10, "out_of_memory", "CUDA out of memory"),
        ([1.0], "sayOSError: No space left on device", 10, "disk_full", "No space"),
        ([1.0], "sayFloatingPointError: gradients are Nan/Inf", 10, "not_finite", "Nan/Inf"),
        ([1.0], "kill9", 10, "killed", r"by SIGKILL \(the kernel's out-of-memory killer may be"),
        ([1.0], "kill15", 10, "killed", r"fairseq-train \(seed 1\) was killed by SIGTERM$"),
    ],
)
def test_errors_are_results(
    losses: list[float], ending: str, parameters: int, kind: str, error: str, tmp_path: Path
) -> None:
    result = finish(TrialRun(make_job(tmp_path, (losses, ending), parameters=parameters)))
    assert result.losses == ()
    assert result.error is not None
    assert re.search(error, result.error, re.DOTALL)
    assert result.failure == kind


def test_the_kernel_kills_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    for module in (runner, steps):
        monkeypatch.setattr(module, "count_oom_kills", lambda: next(counts))
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "kill9"))))
    assert result.failure is FailureKind.OUT_OF_MEMORY
    assert result.error is not None and "out-of-memory killer was at work" in result.error


def test_only_this_start_s_log_counts(tmp_path: Path) -> None:
    first = finish(TrialRun(make_job(tmp_path, ([1.0], "sayCUDA out of memory"))))
    assert first.failure is FailureKind.OUT_OF_MEMORY
    second = finish(TrialRun(make_job(tmp_path, ([1.0], "fail"))))
    assert second.failure is FailureKind.TRAINING
    assert second.error is not None and "CUDA" not in second.error
    assert second.seconds > first.seconds > 0, "earlier attempts count"


def test_a_loss_that_is_no_number_ends_a_training(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([1.0, math.nan], "hang")))
    began = time.monotonic()
    result = finish(trial)
    assert time.monotonic() - began < 10
    assert result.failure is FailureKind.NOT_FINITE
    assert result.error == "the validation loss of seed 1 is nan"


def test_a_training_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(steps, "STOP_GRACE_SECONDS", 0.5)
    trial = TrialRun(make_job(tmp_path, ([1.0], "family"), hang_seconds=1.0))
    log = tmp_path / "seed-1" / "train.log"
    trial.poll()
    wait_for(lambda: "child" in log.read_text())
    child = int(log.read_text().split()[-1])
    result = finish(trial)
    assert result.failure is FailureKind.HUNG
    assert result.error is not None
    assert re.search(r"seed 1\) was stopped: it had written nothing for 1 s", result.error)
    wait_for(lambda: not is_running(child))


def test_a_training_that_writes_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "WATCH_SECONDS", 0.05)
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "alive"), hang_seconds=2.0)))
    assert result.losses == (1.0,)


@pytest.mark.parametrize(
    "where", ["write_trial_files", "lock_folder", "repair_checkpoints", "write_json"]
)
def test_a_full_disk_is_a_result(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runner, where, fail)
    result = finish(TrialRun(make_job(tmp_path, ([["settled", 1.0]], "end"))))
    assert result.failure is FailureKind.DISK_FULL
    assert result.error is not None and "No space left on device" in result.error


def test_data_that_a_node_lacks(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"), data_folder=absent)))
    assert result.failure is FailureKind.NO_DATA
    assert result.error == (
        f"{socket.gethostname()} has no data folder {absent}: share the folder with every node, "
        "or set execution.transfer to object_store"
    )


def test_the_files_of_a_trial(tmp_path: Path) -> None:
    job = make_job(tmp_path, ([1.0], "end"), plan={"decoder_self": {"scheme": "shared"}})
    finish(TrialRun(job))
    assert json.loads((tmp_path / "plan.json").read_text()) == job.plan
    assert (tmp_path / "commands.sh").read_text().startswith("OMP_NUM_THREADS=1 fairseq-train ")


def test_evaluation_and_measurement(tmp_path: Path) -> None:
    rates = "Translated 9 sentences (8 tokens) in 1.0s (4.00 sentences/s, 2 tokens/s)"
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        ([2.0], "end"),
        evaluation=("fairseq-eval-lm", CHECKPOINT, MODELLED),
        measure=("fairseq-generate", CHECKPOINT, rates),
        measure_runs=2,
    )
    result = finish(TrialRun(job))
    assert result.error is None
    assert result.tests == ({"nll_loss": 6.3292, "ppl": 80.4},) * 2
    assert result.measured == {"decoding_seconds": 0.25}
    assert (tmp_path / "seed-2" / "test.log").read_text() == MODELLED + "\n"
    assert (tmp_path / "seed-1" / "measure.log").read_text() == (rates + "\n") * 2
    assert not (tmp_path / "seed-2" / "measure.log").exists()


def test_finished_steps_are_not_repeated(tmp_path: Path) -> None:
    """A trial whose measurement fails goes on there: training and evaluation stay as they are."""
    job = make_job(
        tmp_path,
        ([1.0], "end"),
        evaluation=("fairseq-generate", CHECKPOINT, GENERATED),
        measure=("fairseq-generate", CHECKPOINT, "fail"),
    )
    first = finish(TrialRun(job))
    assert first.failure is FailureKind.TRAINING
    assert first.error is not None
    assert re.search(r"fairseq-generate \(seed 1\) ended.*no such subset", first.error, re.DOTALL)
    logs = [tmp_path / "seed-1" / name for name in ("train.log", "test.log")]
    before = [log.read_text() for log in logs]
    mended = dataclasses.replace(job, measure=("fairseq-generate", CHECKPOINT, GENERATED))
    result = finish(TrialRun(mended))
    assert result.measured["decoding_seconds"] == pytest.approx(1 / 530.87)
    assert result.tests == ({"bleu": 12.08},)
    assert [log.read_text() for log in logs] == before
    assert result.seconds == first.seconds, "only training counts"
    measured = (tmp_path / "seed-1" / "measure.log").read_text()
    assert finish(TrialRun(mended)) == result
    assert (tmp_path / "seed-1" / "measure.log").read_text() == measured


def test_the_loss_on_the_test_side(tmp_path: Path) -> None:
    printed = "| INFO | valid on 'test' subset | loss 5.2 | nll_loss 3.25 | ppl 9.51"
    job = make_job(tmp_path, ([1.0], "end"), evaluation=("fairseq-generate", CHECKPOINT, GENERATED))
    (run,) = job.runs

    def measured(text: str) -> TrialResult:
        validate = ("fairseq-validate", CHECKPOINT, text)
        return finish(
            TrialRun(dataclasses.replace(job, runs=(dataclasses.replace(run, test_loss=validate),)))
        )

    lacking = measured(printed.replace(" loss 5.2 |", ""))
    assert lacking.error == "fairseq-validate (seed 1): it printed no loss, but nll_loss, ppl"
    assert measured(printed).tests == ({"loss": 5.2, "bleu": 12.08},)


def test_an_evaluation_without_a_score(tmp_path: Path) -> None:
    evaluation = ("fairseq-validate", CHECKPOINT, "done")
    result = finish(TrialRun(make_job(tmp_path, ([1.0], "end"), evaluation=evaluation)))
    assert result.failure is FailureKind.TRAINING
    assert result.error == "fairseq-validate (seed 1): it printed no score:\ndone"


def test_a_metric_that_fairseq_does_not_log(tmp_path: Path) -> None:
    job = TrialJob.from_json({**make_job(tmp_path, ([1.0], "end")).to_json(), "metric": "bleu"})
    result = finish(TrialRun(job))
    assert result.error == "fairseq logged no metric 'bleu'; it logged loss"


def test_a_group_dies_with_its_leader(tmp_path: Path) -> None:
    """What fairseq has started for other GPUs must not go on when the first process is killed."""
    trial = TrialRun(make_job(tmp_path, ([1.0], "family")))
    log = tmp_path / "seed-1" / "train.log"
    trial.poll()
    wait_for(lambda: "child" in log.read_text())
    child = int(log.read_text().split()[-1])
    assert is_running(child)
    os.kill(pid_of(trial), signal.SIGKILL)
    assert finish(trial).failure is FailureKind.KILLED
    wait_for(lambda: not is_running(child))


def test_stopping_ends_the_whole_group(tmp_path: Path) -> None:
    trial = TrialRun(make_job(tmp_path, ([1.0], "family")))
    log = tmp_path / "seed-1" / "train.log"
    trial.poll()
    wait_for(lambda: "child" in log.read_text())
    pids = [pid_of(trial), int(log.read_text().split()[-1])]
    trial.stop()
    wait_for(lambda: not any(is_running(pid) for pid in pids))


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
from pathlib import Path
from nas_attn.trials import runner
from tests.helpers.trials import *
runner.executable_form = stand_in
trial = TrialRun(make_job(Path({str(tmp_path)!r}), ([1.0], "hang")))
trial.poll()
print(pid_of(trial), flush=True)
time.sleep(60)
"""
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_for(lambda: not is_running(child))


def test_one_training_in_a_folder(tmp_path: Path) -> None:
    first = TrialRun(make_job(tmp_path, ([1.0], "hang")))
    first.poll()
    second = TrialRun(make_job(tmp_path, ([2.0], "end")))
    for _ in range(5):
        second.poll()
    assert second._activity is None
    first.stop()
    assert finish(second).losses == (2.0,)


def test_errors_of_our_own_are_seen_and_end_one_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(TrialReports, "news", fail)
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "hang"))))
    assert result.failure is FailureKind.INTERNAL
    assert result.error is not None
    assert "an error of nas-attn itself, KeyError: 'a mistake'" in result.error
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Traceback" in caplog.text
    assert 'raise KeyError("a mistake")' in (tmp_path / "error.log").read_text()
