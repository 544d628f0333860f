"""The steps of a trial: what each process is for, and how it is watched while it runs."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from nas_attn.files import size_of
from nas_attn.trials.failures import Failure, count_oom_kills
from nas_attn.trials.job import CHECKPOINT, SeedRun, TrialJob
from nas_attn.trials.layout import (
    BEST,
    CHECKPOINTS,
    LOG_FILE,
    MEASURE_LOG_FILE,
    PRUNE_LOG_FILE,
    PRUNED,
    START,
    START_LOG_FILE,
    TEST_LOG_FILE,
    TEST_LOSS_LOG_FILE,
    best_checkpoint,
    read_state,
)
from nas_attn.trials.processes.launch import Running
from nas_attn.trials.scores import end_of_log
from nas_attn.trials.updates import Updates, read_updates
from nas_attn.validation_log import REPORT_FILE

STOP_GRACE_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""How often at most the files of a process are looked at to see whether it hangs."""
READ_SECONDS = 5.0
"""How often at most a log is read for how far its training is."""


class StepKind(Enum):
    """What a process of a trial is for; the value is the name of its log."""

    START = START_LOG_FILE
    TRAIN = LOG_FILE
    PRUNE = PRUNE_LOG_FILE
    EVALUATE = TEST_LOG_FILE
    TEST_LOSS = TEST_LOSS_LOG_FILE
    MEASURE = MEASURE_LOG_FILE


@dataclass(frozen=True)
class Step:
    """One process of a trial: what for, and on which run."""

    kind: StepKind
    run: SeedRun
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return Path(self.run.folder)

    @property
    def log(self) -> Path:
        return self.folder / self.kind.value

    @property
    def trains(self) -> bool:
        return self.kind is StepKind.TRAIN or (
            self.kind is StepKind.START and self.run.is_trained_first
        )

    @property
    def checkpoints(self) -> Path:
        """Where it keeps its checkpoints."""
        return self.folder / (START if self.kind is StepKind.START else CHECKPOINTS)

    @property
    def report_folder(self) -> Path:
        """Where its report is, if it trains."""
        return self.checkpoints if self.kind is StepKind.START else self.folder

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.command[0]} (seed {self.run.seed})"


def next_step(job: TrialJob) -> Step | None:
    """The first step of a trial that is not finished, as its folders say; None if all are."""
    for run in job.runs:
        state = read_state(Path(run.folder))
        if run.start and "started" not in state:
            return Step(StepKind.START, run, run.start)
        if not state.get("finished", False):
            if state.get("trained", False):
                return Step(StepKind.PRUNE, run, prune_command(run))
            return Step(StepKind.TRAIN, run, run.command)
        if run.evaluation and "test" not in state:
            return Step(StepKind.EVALUATE, run, _on_checkpoint(run.evaluation, run))
        if run.test_loss and "test_loss" not in state:
            return Step(StepKind.TEST_LOSS, run, _on_checkpoint(run.test_loss, run))
    if job.measure and len(decoding_seconds(job.runs[0])) < job.measure_runs:
        first = job.runs[0]
        return Step(StepKind.MEASURE, first, _on_checkpoint(job.measure, first))
    return None


def prune_command(run: SeedRun) -> tuple[str, ...]:
    """The command that cuts what a training has masked out of its best checkpoint."""
    folder = Path(run.folder) / CHECKPOINTS
    return ("nas-attn", "prune", str(folder / BEST), "--out", str(folder / PRUNED))


def decoding_seconds(run: SeedRun) -> list[float]:
    """What each measurement of a run's decoding gave so far."""
    seconds: list[float] = read_state(Path(run.folder)).get("decoding_seconds", [])
    return seconds


def _on_checkpoint(command: Sequence[str], run: SeedRun) -> tuple[str, ...]:
    checkpoint = str(best_checkpoint(Path(run.folder)))
    return tuple(checkpoint if part == CHECKPOINT else part for part in command)


@dataclass
class Activity:
    """A step's process, and what there is to know about it while it runs.

    Args:
        step: Step that it is for.
        running: The process.
        log_start: Size of the log when it started, in bytes; what is before belongs to others.
        oom_kills: Kills of the control group for memory when it started, None if unknown.
        failure: Failure for which it is being stopped; None as long as it may run.
        kill_at: Time when it is killed, if it has not heeded the request to end.
    """

    step: Step
    running: Running
    log_start: int
    oom_kills: int | None
    started: float = field(default_factory=time.monotonic)
    failure: Failure | None = None
    kill_at: float = math.inf
    watched_at: float = -math.inf
    changed_at: float = field(default_factory=time.monotonic)
    _files: tuple[Any, ...] = ()
    _read_at: float = -math.inf
    _updates: Updates | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def log_text(self) -> str:
        """The end of what the process has printed."""
        return end_of_log(self.step.log, self.log_start)

    def updates(self) -> Updates | None:
        """How far a training is; None for what does not train, and as long as it has not said."""
        now = time.monotonic()
        if self.step.trains and now - self._read_at >= READ_SECONDS:
            self._read_at = now
            self._updates = read_updates(self.step.command, self.step.log, self.log_start)
        return self._updates

    def quiet_seconds(self) -> float:
        """For how long the process has written nothing."""
        now = time.monotonic()
        if now - self.watched_at >= WATCH_SECONDS:
            self.watched_at = now
            files = _traces(self.step)
            if files != self._files:
                self._files, self.changed_at = files, now
        return now - self.changed_at

    def was_oom_killed(self) -> bool:
        """Whether the kernel killed any process of the control group for memory meanwhile."""
        now = count_oom_kills()
        return self.oom_kills is not None and now is not None and now > self.oom_kills

    def ask_to_end(self, failure: Failure | None = None) -> None:
        """Ask the process group to end; it is killed if it has not after a grace."""
        self.failure = failure
        self.kill_at = time.monotonic() + STOP_GRACE_SECONDS
        self.running.signal(signal.SIGTERM)

    def end(self) -> None:
        """Ask the process group to end, and kill it if it has not after a grace."""
        self.ask_to_end()
        if self.running.wait(STOP_GRACE_SECONDS) is None:
            self.running.signal(signal.SIGKILL)
            self.running.wait(STOP_GRACE_SECONDS)


def _traces(step: Step) -> tuple[Any, ...]:
    """What changes when a step's process gets anywhere: sizes of its files, its checkpoints."""
    checkpoints = []
    try:
        with os.scandir(step.checkpoints) as entries:
            for entry in entries:
                stat = entry.stat()
                checkpoints.append((entry.name, stat.st_size, stat.st_mtime_ns))
    except OSError:
        pass  # not yet made, or renamed as we look; the next look will show
    return (size_of(step.log), size_of(step.report_folder / REPORT_FILE), *sorted(checkpoints))
