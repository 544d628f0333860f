"""What a search has after each of its trials, by what the table says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_attn.benchmark.search.table import SearchTable
from nas_attn.pareto import hypervolume


@dataclass(frozen=True)
class Ended:
    """A trial that has ended.

    Args:
        plan: Text of its plan.
        updates: Updates that it was trained for.
        time: Seconds since the search began, in virtual time.
        is_finished: Whether it was trained to its end.
    """

    plan: str
    updates: int
    time: float
    is_finished: bool


@dataclass(frozen=True)
class Step:
    """Where a search stands after a trial.

    Args:
        trials: Trials that have ended, stopped ones too.
        updates: Updates of all of them.
        time: Seconds since the search began, in virtual time.
        share: Hypervolume of what has finished, over that of the whole table.
    """

    trials: int
    updates: int
    time: float
    share: float


def steps_of(table: SearchTable, trials: Sequence[Ended]) -> list[Step]:
    """Follow a search, whose trials are given in the order in which they ended."""
    steps, finished, updates = [], [], 0
    for count, trial in enumerate(trials, start=1):
        updates += trial.updates
        if trial.is_finished:
            finished.append(trial.plan)
        steps.append(Step(count, updates, trial.time, share_of(table, finished)))
    return steps


def share_of(table: SearchTable, finished: Sequence[str]) -> float:
    """Share of the best hypervolume that a search has whose finished plans are these."""
    return hypervolume([table.points[text] for text in finished], table.reference) / table.best
