"""Who is in the way: processes that hold a file, and those that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_attn.trials import runner
from nas_attn.trials.job import SeedRun, TrialJob
from nas_attn.trials.layout import LOCK_FILE
from nas_attn.trials.processes.holders import holders_of, holders_text, is_stopped
from nas_attn.trials.runner import TrialRun

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """A process that holds the lock of a training, and is stopped."""
    path = tmp_path / "seed-1" / LOCK_FILE
    path.parent.mkdir()
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        while not is_stopped(process.pid):
            time.sleep(0.01)
        yield process.pid
        process.kill()


def test_holders_are_found(holder: int, tmp_path: Path) -> None:
    path = tmp_path / "seed-1" / LOCK_FILE
    assert holders_of(path) == [holder]
    assert f"process {holder} holds its lock; stopped: kill -CONT {holder}" in holders_text(path)
    assert not is_stopped(os.getpid())
    assert "cannot be seen from here" in holders_text(tmp_path / "nothing")


def test_a_trial_says_who_holds_its_folder(
    holder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "SAY_SECONDS", 0.05)
    run = SeedRun(seed=1, folder=str(tmp_path / "seed-1"), command=("fairseq-train",))
    job = TrialJob(number=3, folder=str(tmp_path), metric="loss", parameters=1, runs=(run,))
    trial = TrialRun(job)
    trial.poll()
    assert not caplog.text
    time.sleep(0.1)
    trial.poll()
    assert f"trial 3 waits for its folder {tmp_path / 'seed-1'}: process {holder}" in caplog.text
    assert trial.result is None
