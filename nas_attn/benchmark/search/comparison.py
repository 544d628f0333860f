"""Searches compared over seeds: means, medians, and how far they are certain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_attn.benchmark.search.steps import Step

LEVELS = (0.8, 0.9, 0.95)
"""Shares of the best hypervolume that searches are timed to."""
REPLICATES = 2000
"""Times that seeds are drawn again, with replacement, for the 95 % intervals."""

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Over the last axis."""


@dataclass(frozen=True)
class Estimate:
    """A number over seeds, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Reached:
    """When a share was reached.

    Args:
        trials: Median number of trials; infinite where fewer than half of the seeds got there.
        updates: Median number of updates.
        missed: Seeds that never got there.
    """

    trials: Estimate
    updates: Estimate
    missed: int

    def trainings(self, updates: int) -> Estimate:
        """The updates in whole trainings.

        Args:
            updates: Updates of a whole training.
        """
        spent = self.updates
        return Estimate(spent.value / updates, spent.low / updates, spent.high / updates)


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean, with its interval."""
    return _estimate(np.asarray(values, dtype=float), _mean)


def _mean(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(drawn.mean(axis=-1))


def median_of(values: Sequence[float]) -> Estimate:
    """The median, with its interval; values may be infinite.

    Of an even number it is the upper of the two in the middle.
    """

    def middle(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.sort(drawn, axis=-1)[..., drawn.shape[-1] // 2]
        return found

    return _estimate(np.asarray(values, dtype=float), middle)


def shares_after(runs: Mapping[int, Sequence[Step]], trials: int) -> dict[int, float]:
    """Share of each seed's search after so many trials; the last one if it ended before."""
    return {
        seed: steps[min(trials, len(steps)) - 1].share if steps else 0.0
        for seed, steps in runs.items()
    }


def share_at(steps: Sequence[Step], updates: float) -> float:
    """Share of a search that has spent so many updates."""
    return next((s.share for s in reversed(steps) if s.updates <= updates), 0.0)


def share_by(steps: Sequence[Step], seconds: float) -> float:
    """Share of a search after so many seconds of virtual time."""
    return next((s.share for s in reversed(steps) if s.time <= seconds), 0.0)


def reached(runs: Mapping[int, Sequence[Step]], level: float) -> Reached:
    """When searches first had a share, over their seeds."""
    firsts = [next((s for s in steps if s.share >= level), None) for steps in runs.values()]
    return Reached(
        trials=median_of([math.inf if step is None else step.trials for step in firsts]),
        updates=median_of([math.inf if step is None else step.updates for step in firsts]),
        missed=sum(step is None for step in firsts),
    )


def lead(
    ours: Mapping[int, Sequence[Step]], others: Mapping[int, Sequence[Step]], trials: int
) -> Estimate:
    """Mean difference of shares after so many trials, paired by seed."""
    one, two = shares_after(ours, trials), shares_after(others, trials)
    return mean_of([one[seed] - two[seed] for seed in one if seed in two])


def _estimate(values: NDArray[np.float64], statistic: Statistic) -> Estimate:
    random = np.random.default_rng(0)
    drawn = values[random.integers(0, len(values), (REPLICATES, len(values)))]
    low, high = np.quantile(statistic(drawn), [0.025, 0.975], method="closest_observation")
    return Estimate(float(statistic(values)), float(low), float(high))
