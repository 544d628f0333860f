"""Progress of a workflow: it calls an `Events` object, and prints nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nas_attn.engine.objectives import Objectives
from nas_attn.engine.snapshot import Snapshot
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.updates import Updates

logger = logging.getLogger(__name__)

UPDATES_SECONDS = 60.0
"""So long after its last line `LogEvents` says how far the trainings are that run."""
SAY_SECONDS = 1.0
"""At most so often `LogEvents` says how far a run is."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Trials that are run together, in an executor.

    Args:
        title: Title for people.
        objectives: Objectives of the study.
        workers: Trials at a time.
        is_search: Whether a front is sought; measurements and single trainings have none.
        part: Which part of a search it is, in words; empty if it is all.
        is_last: Whether no further part follows.
    """

    title: str
    objectives: Objectives
    workers: int
    is_search: bool
    part: str = ""
    is_last: bool = True


class Events(Protocol):
    """Told what happens; all calls come from the thread that runs the workflow."""

    def on_message(self, text: str) -> None:
        """A sentence that a user wants to read, such as how much will be measured."""

    def on_failure(self, trial: TrialRecord) -> None:
        """A measurement has failed; the others go on."""

    def on_start(self, run: Run, snapshot: Callable[[], Snapshot]) -> None:
        """Trials begin to run; `snapshot()` returns what there is already."""

    def on_change(self, snapshot: Callable[[], Snapshot]) -> None:
        """Something happened to a trial; `snapshot()` returns where the run stands.

        Called often; making a snapshot takes a moment where there are thousands of trials.
        """

    def on_end(self, snapshot: Callable[[], Snapshot] | None) -> None:
        """The run is over; None if it was interrupted or failed, and an exception follows."""


class LogEvents:
    """Logs messages, in one line at most every second how far a run is, every minute how far its
    trainings are, and how it ended."""

    def __init__(self) -> None:
        self._workers = 1
        self._said = 0.0
        self._over = -1
        self._part = ""

    def on_message(self, text: str) -> None:
        logger.info("%s", text)

    def on_failure(self, trial: TrialRecord) -> None:
        logger.error("trial %d failed (%s): %s", trial.number, trial.failure, trial.reason)

    def on_start(self, run: Run, snapshot: Callable[[], Snapshot]) -> None:
        self._workers, self._said, self._over = run.workers, 0.0, -1
        part = run.part if run.is_search else run.title
        self._part = f"{part}: " if part else ""

    def on_change(self, snapshot: Callable[[], Snapshot]) -> None:
        if time.monotonic() - self._said < SAY_SECONDS:
            return
        self._say(snapshot())

    def on_end(self, snapshot: Callable[[], Snapshot] | None) -> None:
        if snapshot is not None:
            self._say(snapshot())

    def _say(self, now: Snapshot) -> None:
        if now.over == self._over:
            self._say_updates(now)
            return
        self._said, self._over = time.monotonic(), now.over
        left = now.seconds_left(self._workers) if now.over < now.budget else None
        logger.info(
            "%s%d of %d finished, %d stopped early, %d running, %d failed%s",
            self._part,
            now.finished,
            now.budget,
            now.stopped,
            len(now.running) + now.elsewhere,
            now.failed,
            "" if left is None else f", about {duration(left)} left",
        )

    def _say_updates(self, now: Snapshot) -> None:
        texts = [_how_far(trial.name, trial.updates) for trial in now.running if trial.updates]
        if texts and time.monotonic() - self._said >= UPDATES_SECONDS:
            self._said = time.monotonic()
            logger.info("%s%s", self._part, "; ".join(texts))


def _how_far(name: str, updates: Updates) -> str:
    of_seed = "" if updates.seed is None else f", seed {updates.seed}"
    return f"{name}{of_seed}: {updates.text} updates"


def duration(seconds: float) -> str:
    """Seconds in words, short."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
