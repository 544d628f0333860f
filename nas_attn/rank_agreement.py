"""Whether one measure orders plans as another does: Kendall's tau, also among plans of one size."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_OVERALL = 0.7
LEAST_WITHIN = 1 / 3
"""Kendall's tau below which an order is no guide, over all and as a mean within terciles."""
LEAST_COUNT = 6
"""With fewer plans terciles say nothing."""


@dataclass(frozen=True)
class RankAgreement:
    """Kendall's tau-b of two measures.

    Args:
        overall: Kendall's tau over all plans.
        terciles: Kendall's tau among the smallest, the middle and the largest third; nan where all
            are equal.
    """

    overall: float
    terciles: tuple[float, float, float]

    @property
    def within(self) -> float:
        """Mean over the terciles."""
        return statistics.fmean(self.terciles)

    @property
    def is_guide(self) -> bool:
        """Whether one order may be followed for the other; not so if that is unknown."""
        return self.overall >= LEAST_OVERALL and self.within >= LEAST_WITHIN

    def __str__(self) -> str:
        terciles = ", ".join(f"{tau:.2f}" for tau in self.terciles)
        return (
            f"tau {self.overall:.2f} over all, {self.within:.2f} within terciles of size "
            f"({terciles})"
        )


def rank_agreement(
    costs: Sequence[float], first: Sequence[float], second: Sequence[float]
) -> RankAgreement:
    """Compare two measures of the same plans.

    Args:
        costs: The plans' sizes, which make the terciles.
        first: One measure of each plan.
        second: Other measure of each plan.
    """
    order = sorted(range(len(costs)), key=lambda index: costs[index])
    cuts = [round(third * len(order) / 3) for third in range(4)]

    def tau(places: Sequence[int]) -> float:
        return kendall([first[place] for place in places], [second[place] for place in places])

    low, middle, high = (tau(order[start:end]) for start, end in itertools.pairwise(cuts))
    return RankAgreement(tau(order), (low, middle, high))


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b; nan if all values of one are equal."""
    from scipy.stats import kendalltau

    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    return float(kendalltau(first, second).statistic)
