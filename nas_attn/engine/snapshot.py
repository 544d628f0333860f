"""Where a search stands at one moment: what a display shows of it while it runs."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import TrialState

from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.pareto import dominates
from nas_attn.plan import AttentionPlan
from nas_attn.trials.job import Validation
from nas_attn.trials.updates import Updates

LATEST = 5
"""So many of the trials that ended last are in a snapshot."""


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial in progress, for the display.

    Args:
        number: Number of the trial.
        name: What the log calls it.
        plan: Its plan.
        cost: The cost that trials are spread over.
        started: Time when it was started here, in seconds since 1970.
        last: Its last validation; None before the first.
        gpus: GPUs that it has.
        is_warm: Whether it starts from the trained baseline, converted, or from its parent.
        updates: How far its training is; None as long as that is not known.
    """

    number: int
    name: str
    plan: AttentionPlan
    cost: int
    started: float
    last: Validation | None = None
    gpus: str | None = None
    is_warm: bool = False
    updates: Updates | None = None


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
        mean_seconds: Mean time of the trials that are over, in seconds: of those that start warm
            (True), which are fine-tuned, and of the others (False), as far as there are any.
        starts_warm: Whether those that are to come start warm.
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
    mean_seconds: Mapping[bool, float] = field(default_factory=dict)
    starts_warm: bool = False

    @property
    def over(self) -> int:
        """Trials that are over, however they ended."""
        return self.finished + self.stopped + self.over_limit + self.failed

    def seconds_left(self, workers: int) -> float | None:
        """An estimate from trials of the same kind; None before the first of a kind is over."""
        to_start = max(0, self.budget - self.over - len(self.running) - self.elsewhere)
        kinds = [trial.is_warm for trial in self.running] + [self.starts_warm] * to_start
        if not all(kind in self.mean_seconds for kind in kinds or [self.starts_warm]):
            return None
        now, means = time.time(), self.mean_seconds
        rest = [max(0.0, means[r.is_warm] - (now - r.started)) for r in self.running]
        work = sum(rest) + sum(means[kind] for kind in kinds[len(rest) :])
        return max([work / workers, *rest])


@dataclass
class Tally:
    """Sums over the trials that are over, kept up one by one."""

    finished: int = 0
    stopped: int = 0
    over_limit: int = 0
    failed: int = 0
    seconds: dict[bool, list[float]] = field(default_factory=dict)
    trained: list[TrialRecord] = field(default_factory=list)
    latest: deque[TrialRecord] = field(default_factory=lambda: deque(maxlen=LATEST))
    front: list[TrialRecord] = field(default_factory=list)
    baseline: TrialRecord | None = None
    read: int = 0

    @property
    def mean_seconds(self) -> dict[bool, float]:
        """Mean time of trials that start warm (True), and of the others."""
        return {kind: statistics.fmean(times) for kind, times in self.seconds.items()}

    def update(self, trials: Sequence[TrialRecord], over: Sequence[int]) -> None:
        for number in over[self.read :]:
            self._add(trials[number])
        self.read = len(over)

    def _add(self, trial: TrialRecord) -> None:
        if not trial.uses_budget:
            return
        if trial.seconds:
            self.seconds.setdefault(trial.is_warm, []).append(trial.seconds)
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
