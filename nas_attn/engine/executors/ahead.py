"""Later seeds of running trials, trained where nothing else is to be run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from nas_attn.engine.executors.places import Places
from nas_attn.trials.job import SeedRun
from nas_attn.trials.processes.launch import Launcher
from nas_attn.trials.runner import TrialRun


class SeedsAhead:
    """Trains the last seeds of running trials in places that would be idle.

    A trial trains its seeds one after the other. Where no other trial can begin, as long as all
    wait for the baseline and at the end of a search, others of them are trained beside that. The
    trial finds them finished when it comes to them, or waits for them, and goes on with what has
    failed here.

    Args:
        places: Places of the machine.
        launcher: Launcher of their processes.
    """

    def __init__(self, places: Places, launcher: Launcher) -> None:
        self._places, self._launcher = places, launcher
        self._running: dict[int, tuple[TrialRun, TrialRun]] = {}
        self._begun: set[tuple[int, int]] = set()
        # Trials are counted from 0.
        self._numbers = itertools.count(-1, -1)

    def fill(self, trials: Iterable[TrialRun], *, may_stop: bool) -> None:
        """Begin as many seeds as there is room for.

        Args:
            trials: Trials that run.
            may_stop: Whether a trial may be stopped by what its first seed comes to, so that
                others are not begun until that is finished.
        """
        for trial in trials:
            for run in reversed(trial.job.runs):
                if not self._places.has_room:
                    return
                is_new = (trial.job.number, run.seed) not in self._begun
                if is_new and _is_later(trial, run, may_stop):
                    self._begin(trial, run)

    def _begin(self, trial: TrialRun, run: SeedRun) -> None:
        number = next(self._numbers)
        device = self._places.take(number)
        job = replace(trial.job, runs=(run,), measure=())
        self._running[number] = trial, TrialRun(job, device=device, launcher=self._launcher)
        self._begun.add((job.number, run.seed))
        trial.elsewhere.add(run.seed)

    def poll(self) -> None:
        """Move on as far as possible without waiting."""
        for number, (trial, ahead) in list(self._running.items()):
            ahead.poll()
            if ahead.result is not None:
                self._leave(number, trial, ahead)

    def end(self, trial: int) -> None:
        """A trial has ended: what is still trained for it stops."""
        self._begun = {(number, seed) for number, seed in self._begun if number != trial}
        for number, (owner, ahead) in list(self._running.items()):
            if owner.job.number == trial:
                ahead.stop()
                self._leave(number, owner, ahead)

    def stop(self) -> None:
        """Stop everything; what was saved stays."""
        for _, ahead in self._running.values():
            ahead.stop()

    def _leave(self, number: int, trial: TrialRun, ahead: TrialRun) -> None:
        del self._running[number]
        self._places.leave(number)
        trial.elsewhere.discard(ahead.job.runs[0].seed)


def _is_later(trial: TrialRun, run: SeedRun, may_stop: bool) -> bool:
    """Whether a trial will come to a seed for sure, and is not there yet."""
    at = trial.at
    if at is None or trial.job.alone or (may_stop and at == 0):
        return False
    return trial.job.runs.index(run) > at
