"""Whether trials that started warm come in the order that they have when trained from nothing."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nas_attn.search.record import TrialRecord

LEAST_OVERALL = 0.7
LEAST_WITHIN = 1 / 3
"""Kendall's tau below which an order misleads, over all and as a mean within terciles."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A plan that was trained both ways.

    Args:
        trial: number of the warm trial.
        plan: in words.
        cost: on the axis of the objectives.
        warm: loss of the warm trial.
        cold: loss of the training from nothing.
    """

    trial: int
    plan: str
    cost: int
    warm: float
    cold: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The rank agreement of warm and cold losses.

    Args:
        pairs: from small to large.
        overall: Kendall's tau-b of all pairs.
        terciles: the same among the smallest, the middle and the largest third.
        seconds: that the cold trainings took.
        updates: that they had.
    """

    pairs: tuple[Pair, ...]
    overall: float
    terciles: tuple[float, float, float]
    seconds: float
    updates: int

    @property
    def within(self) -> float:
        """Mean over the terciles."""
        return statistics.fmean(self.terciles)

    @property
    def misleads(self) -> bool:
        """Whether the order of warm trials is no guide to that of cold ones; so if unknown."""
        return not (self.overall >= LEAST_OVERALL and self.within >= LEAST_WITHIN)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        found = f"tau {self.overall:.2f} over all, {self.within:.2f} within terciles of size"
        if self.misleads:
            return (
                f"The order of warm trials misleads here ({found}; at least {LEAST_OVERALL:.2f} "
                f"and {LEAST_WITHIN:.2f} are wanted): believe the front only once it is confirmed, "
                "or fine-tune for longer (search.warm_start.fraction)"
            )
        return f"Warm trials come in nearly the order of cold ones ({found})"


def spread_evenly(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Of the trained warm trials, so many, spread over the cost axis by rank."""
    warm = [trial for trial in trials if trial.is_warm and trial.is_trained]
    warm.sort(key=lambda trial: (trial.cost or 0, trial.number))
    if len(warm) <= count:
        return warm
    return [warm[round(place * (len(warm) - 1) / (count - 1))] for place in range(count)]


def agreement_of(warm: Sequence[TrialRecord], cold: Sequence[TrialRecord]) -> Agreement | None:
    """Compare warm trials with trainings of the same plans from nothing; None if there are few.

    Args:
        warm: of the search.
        cold: of the record of cold trainings.
    """
    by_plan = {trial.plan: trial for trial in cold if trial.is_trained}
    pairs = [
        Pair(
            trial=trial.number,
            plan=trial.text,
            cost=trial.cost or 0,
            warm=trial.loss or 0.0,
            cold=by_plan[trial.plan].loss or 0.0,
        )
        for trial in warm
        if trial.is_warm and trial.is_trained and trial.plan in by_plan
    ]
    if len(pairs) < 6:
        return None
    pairs.sort(key=lambda pair: (pair.cost, pair.trial))
    cuts = [round(third * len(pairs) / 3) for third in range(4)]
    low, middle, high = (_tau(pairs[start:end]) for start, end in itertools.pairwise(cuts))
    return Agreement(
        pairs=tuple(pairs),
        overall=_tau(pairs),
        terciles=(low, middle, high),
        seconds=sum(trial.seconds for trial in cold),
        updates=sum(trial.updates for trial in cold),
    )


def _tau(pairs: Sequence[Pair]) -> float:
    from scipy.stats import kendalltau

    if len({pair.warm for pair in pairs}) < 2 or len({pair.cold for pair in pairs}) < 2:
        return math.nan
    warm, cold = [pair.warm for pair in pairs], [pair.cold for pair in pairs]
    return float(kendalltau(warm, cold).statistic)
