"""Where a search stands at one moment: what a display shows of it while it runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState

from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.pareto import dominates
from nas_attn.plan import AttentionPlan
from nas_attn.trials.job import Validation

LATEST = 5
"""So many of the trials that ended last are in a snapshot."""


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial in progress, for the display."""

    number: int
    plan: AttentionPlan
    cost: int
    started: float
    last: Validation | None = None
    gpus: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a search at one moment, for the display.

    Args:
        budget: Trials wanted.
        finished: Trials with a result.
        stopped: Trials that were stopped early.
        over_limit: Trials that were trained, and of which pruning left more than a limit allows.
        failed: Trials without a result.
        running: Trials that this driver runs.
        elsewhere: Trials that other drivers run.
        trained: The finished trials.
        latest: The trials that ended last, the very last at the end.
        front: Finished trials that no other dominates.
        baseline: Trial of the baseline; None if it is not finished.
        mean_trial_seconds: Mean time of the trials that are over, in seconds; None before the
            first.
    """

    budget: int
    finished: int = 0
    stopped: int = 0
    over_limit: int = 0
    failed: int = 0
    running: tuple[RunningTrial, ...] = ()
    elsewhere: int = 0
    trained: tuple[TrialRecord, ...] = ()
    latest: tuple[TrialRecord, ...] = ()
    front: tuple[TrialRecord, ...] = ()
    baseline: TrialRecord | None = None
    mean_trial_seconds: float | None = None

    @property
    def over(self) -> int:
        """Trials that are over, however they ended."""
        return self.finished + self.stopped + self.over_limit + self.failed

    def seconds_left(self, workers: int) -> float | None:
        """An estimate from the trials so far; None before the first."""
        if self.mean_trial_seconds is None:
            return None
        to_start = self.budget - self.over - len(self.running) - self.elsewhere
        now = time.time()
        rest = [max(0.0, self.mean_trial_seconds - (now - r.started)) for r in self.running]
        work = sum(rest) + max(0, to_start) * self.mean_trial_seconds
        return max([work / workers, *rest])


@dataclass
class Tally:
    """Sums over the trials that are over, kept up one by one."""

    finished: int = 0
    stopped: int = 0
    over_limit: int = 0
    failed: int = 0
    seconds: float = 0.0
    trained: list[TrialRecord] = field(default_factory=list)
    latest: deque[TrialRecord] = field(default_factory=lambda: deque(maxlen=LATEST))
    front: list[TrialRecord] = field(default_factory=list)
    baseline: TrialRecord | None = None
    read: int = 0

    def update(self, trials: Sequence[TrialRecord], over: Sequence[int]) -> None:
        for number in over[self.read :]:
            self._add(trials[number])
        self.read = len(over)

    def _add(self, trial: TrialRecord) -> None:
        if not trial.uses_budget:
            return
        self.seconds += trial.seconds
        self.latest.append(trial)
        self.stopped += trial.was_stopped
        self.over_limit += trial.is_over_limit
        self.failed += trial.state == TrialState.FAIL
        if not trial.is_trained:
            return
        self.finished += 1
        self.trained.append(trial)
        if trial.is_baseline:
            self.baseline = trial
        point = trial.point or ()
        if not any(dominates(other.point or (), point) for other in self.front):
            kept = [other for other in self.front if not dominates(point, other.point or ())]
            self.front = front([*kept, trial])
