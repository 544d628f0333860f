"""Where a study stands, read from its record by one who does not take part in the search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from nas_attn.engine.leases import live_drivers, owner_of
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.trials.updates import Updates, latest_updates

BUDGET = "trials"
"""Under this name the record keeps how many trials the last search wanted."""
RATE_SECONDS = 3600.0
"""The rate is that of so much time before now, if enough trials ended in it."""
RATE_TRIALS = 5
"""Where fewer trials ended in that time, the rate is that of so many last ones."""


@dataclass(frozen=True, kw_only=True)
class RunningStatus:
    """A trial that is not over.

    Args:
        trial: Trial as it is now, its curve included.
        driver: Name of the driver that runs it, or ran it last.
        is_alive: Whether that driver lives; if not, another one will take the trial over.
        updates: How far its training is, as the log in its folder says; None if it cannot be seen.
    """

    trial: TrialRecord
    driver: str | None
    is_alive: bool
    updates: Updates | None = None


@dataclass(frozen=True, kw_only=True)
class ChildStudy:
    """What else is trained for a study, such as its confirmation.

    Args:
        name: Name of what is trained.
        finished: Trials with a result.
        running: Trials that are not over.
        failed: Trials without a result.
        drivers: Names of the live ones.
    """

    name: str
    finished: int
    running: int
    failed: int
    drivers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a study stands at one moment.

    Args:
        name: Name of the study.
        now: The moment, in seconds since 1970.
        budget: Trials wanted.
        trials: All trials on record, also those that are not paid for, such as repeated ones.
        unfinished: Trials that count and are not over.
        drivers: Names of the live ones that run the study's own trials.
        children: Other trainings for the study.
    """

    name: str
    now: float
    budget: int
    trials: Sequence[TrialRecord]
    unfinished: Sequence[RunningStatus] = ()
    drivers: Sequence[str] = ()
    children: Sequence[ChildStudy] = ()

    @property
    def over(self) -> list[TrialRecord]:
        """The trials that count and are over, the last one at the end."""
        found = [t for t in self.trials if t.uses_budget and t.state.is_finished()]
        return sorted(found, key=lambda trial: (trial.ended or 0.0, trial.number))

    @property
    def finished(self) -> list[TrialRecord]:
        return [trial for trial in self.over if trial.is_trained]

    @property
    def stopped(self) -> list[TrialRecord]:
        return [trial for trial in self.over if trial.was_stopped]

    @property
    def over_limit(self) -> list[TrialRecord]:
        """Trained, but over a limit by what pruning left."""
        return [trial for trial in self.over if trial.is_over_limit]

    @property
    def failed(self) -> list[TrialRecord]:
        return [trial for trial in self.over if trial.state == TrialState.FAIL]

    @property
    def running(self) -> list[RunningStatus]:
        """What live drivers run."""
        return [trial for trial in self.unfinished if trial.is_alive]

    @property
    def interrupted(self) -> list[RunningStatus]:
        """What waits for a driver."""
        return [trial for trial in self.unfinished if not trial.is_alive]

    @property
    def active_drivers(self) -> list[str]:
        """Names of all that live, also of those at work on other trainings for the study."""
        beside = (driver for child in self.children for driver in child.drivers)
        return list(dict.fromkeys((*self.drivers, *beside)))

    @property
    def front(self) -> list[TrialRecord]:
        return front(self.trials)

    @property
    def baseline(self) -> TrialRecord | None:
        return next((t for t in self.trials if t.is_baseline and t.is_trained), None)

    @property
    def trials_an_hour(self) -> float | None:
        """Trials that end in an hour; None before the first has.

        Once trials start from the trained baseline, and are only fine-tuned, it does not count
        itself, as it took many times as long. Of the last hour, or of the time of the last few
        trials if those took longer. Where nothing runs any more, the last hour is the one before
        the last trial ended.
        """
        begun = [unfinished.trial for unfinished in self.unfinished]
        is_warm = any(trial.is_warm for trial in (*self.over, *begun))
        over = [trial for trial in self.over if not (is_warm and trial.is_baseline)]
        ends = [trial.ended for trial in over if trial.ended is not None]
        starts = [trial.started for trial in (*over, *begun) if trial.started is not None]
        if not ends or not starts:
            return None
        until = self.now if self.running else ends[-1]
        since = max(min(starts), until - RATE_SECONDS)
        count = sum(end > since for end in ends)
        if count < RATE_TRIALS:
            count = min(RATE_TRIALS, len(ends))
            since = ends[-count - 1] if len(ends) > count else min(starts)
        return None if until <= since else count / (until - since) * 3600.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate by the rate; None without a rate, or where nothing runs or is left."""
        rate, left = self.trials_an_hour, self.budget - len(self.over)
        if rate is None or not self.running or left <= 0:
            return None
        return left / rate * 3600.0


def read_status(store: TrialStore, *, trials: int, grace_seconds: float) -> Status:
    """Read where a study stands.

    Args:
        store: Trials of the study.
        trials: Number of trials that are wanted, if the record does not say so.
        grace_seconds: Seconds that a driver on another machine may be silent.

    Raises:
        SearchError: the storage has not answered for long.
    """
    now, metadata = time.time(), store.metadata()
    drivers = live_drivers(metadata, now=now, grace_seconds=grace_seconds)
    known = list(store.trials())
    claims = store.claims()
    unfinished = []
    for trial in [trial for trial in known if trial.uses_budget and not trial.state.is_finished()]:
        known[trial.number] = latest = store.refresh(trial.number)
        if not latest.state.is_finished():
            driver = owner_of(latest, claims)
            unfinished.append(
                RunningStatus(
                    trial=latest,
                    driver=driver,
                    is_alive=driver in drivers,
                    updates=latest_updates((*latest.starts, *latest.commands)),
                )
            )
    return Status(
        name=store.name,
        now=now,
        budget=max(metadata.get(BUDGET, trials), sum(trial.uses_budget for trial in known)),
        trials=known,
        unfinished=unfinished,
        drivers=drivers,
        children=[
            _read_beside(name, states, kept, now=now, grace_seconds=grace_seconds)
            for name, states, kept in store.children()
        ],
    )


def _read_beside(
    name: str,
    states: Sequence[TrialState],
    metadata: Mapping[str, Any],
    *,
    now: float,
    grace_seconds: float,
) -> ChildStudy:
    return ChildStudy(
        name=name,
        finished=states.count(TrialState.COMPLETE),
        running=states.count(TrialState.RUNNING),
        failed=states.count(TrialState.FAIL),
        drivers=tuple(live_drivers(metadata, now=now, grace_seconds=grace_seconds)),
    )
