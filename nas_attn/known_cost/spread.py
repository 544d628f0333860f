"""Points spread evenly over the range of a cost that adds up over units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Picks = npt.NDArray[np.int64]

CANDIDATES = 4096
"""Random points among which the one nearest to a wanted cost is taken."""


class CostSpread:
    """Points of a space, spread over the costs between two ends.

    Point t aims at the t-th of a van der Corput sequence over the range, ends included, and is the
    nearest of many random ones, so that any number of them covers the range evenly. The same seed
    and index give the same point.

    Args:
        tables: Cost that each choice of each unit adds.
        base: Cost that no choice is part of.
        seed: Seed of the random points.
        low: Least cost of the range; None for that of the cheapest point.
        high: Largest cost of the range; None for that of the dearest point.
        costs: Function that gives the exact costs of points, where they do not add up over units.
    """

    def __init__(
        self,
        tables: Sequence[npt.NDArray[Any]],
        base: float,
        seed: int,
        low: float | None = None,
        high: float | None = None,
        costs: Callable[[Picks], Floats] | None = None,
    ) -> None:
        self._tables = list(tables)
        self._base = base
        self._seed = seed
        self._ascending = [np.argsort(table, kind="stable") for table in self._tables]
        self.costs = costs or self._sums
        ends = [base + sum(end(table) for table in self._tables) for end in (np.min, np.max)]
        if costs is not None:
            some = costs(self.candidates(np.random.default_rng(seed)))
            ends = [float(some.min()), float(some.max())]
        self.low = ends[0] if low is None else low
        self.high = ends[1] if high is None else high

    @property
    def size(self) -> int:
        """Points of the space, as far as they can be counted."""
        size = 1
        for table in self._tables:
            size *= len(table)
        return size

    def _sums(self, picks: Picks) -> npt.NDArray[Any]:
        added = np.stack([table[picks[:, u]] for u, table in enumerate(self._tables)])
        return np.asarray(self._base + added.sum(axis=0))

    def propose(
        self, index: int, allows: Callable[[tuple[int, ...]], bool]
    ) -> tuple[int, ...] | None:
        """The free point nearest to the index-th cost of the sequence; None without one.

        Args:
            index: Number of the point, from 0.
            allows: Function that says whether a point is free.
        """
        picks = self.candidates(np.random.default_rng([self._seed, index]))
        wanted = self.low + fraction(index) * (self.high - self.low)
        for candidate in np.argsort(np.abs(self.costs(picks) - wanted), kind="stable"):
            point = tuple(picks[candidate].tolist())
            if allows(point):
                return point
        return None

    def candidates(self, generator: np.random.Generator) -> Picks:
        """Random points as indices (candidates, units): all of a small space, else half drawn
        evenly and half leaning to small or large, which evenly drawn points of many units never
        are."""
        counts = [len(table) for table in self._tables]
        if self.size <= CANDIDATES:
            every = np.indices(counts).reshape(len(counts), -1).T
            return np.asarray(generator.permutation(every))
        even = generator.random((CANDIDATES // 2, len(counts)))
        lean = generator.random((CANDIDATES // 2, 1))
        leaning = np.clip(lean + generator.normal(0.0, 0.2, (CANDIDATES // 2, len(counts))), 0, 1)
        picks = np.empty((CANDIDATES, len(counts)), dtype=np.int64)
        for unit, (count, order) in enumerate(zip(counts, self._ascending, strict=True)):
            ranks = np.minimum((leaning[:, unit] * count).astype(np.int64), count - 1)
            drawn = np.minimum((even[:, unit] * count).astype(np.int64), count - 1)
            picks[:, unit] = np.concatenate([drawn, order[ranks]])
        return picks


def fraction(index: int) -> float:
    """0, 1, then the van der Corput sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
    if index < 2:
        return float(index)
    value, weight, rest = 0.0, 0.5, index - 1
    while rest:
        value += weight * (rest & 1)
        weight, rest = weight / 2, rest >> 1
    return value
