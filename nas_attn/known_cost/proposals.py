"""Which point is tried next, where one objective is known exactly of every point.

All points of a small space are candidates. Of a large one those are that may be on the front: the
surrogate's tables are drawn from its posterior (Thompson 1933), and the multiple-choice knapsack
solves each draw exactly for all costs at once, so a space of 10^20 points is no harder than one of
a thousand. The candidate with the largest expected gain of hypervolume is proposed. With an exact
cost that gain has a closed form: over the steps of the front to the right of the candidate's cost,
it is the sum of the step's width times the expected improvement on its loss (expected improvement:
Jones, Schonlau and Welch 1998; objectives of which some are known: Olofsson et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_attn.knapsack import Item, solve
from nas_attn.known_cost.spread import CANDIDATES, CostSpread, Floats, Picks
from nas_attn.known_cost.surrogate import Alikeness, Choice, Surrogate

DRAWS = 8
"""Draws of the tables that are solved for a proposal in a large space."""
RANDOM = 1024
"""Random points, and as many changes of single choices of the front, beside them."""
MOST_TRIED = 500
"""Tried points that the surrogate sees."""
MARGIN = 0.1
"""The weakest loss that counts is worse than the front's by this share of what the front spans."""
BEYOND = 0.05
"""The dearest cost that counts lies beyond the dearest point by this share of the range, so that
the best of the dearest points is sought, too."""
STEPS = 10**6
"""Whole numbers that a drawn table spans in the knapsack, and costs that are not whole."""

Front = Sequence[tuple[float, float]]
"""Costs and losses that nothing dominates, by rising cost."""


@dataclass(frozen=True)
class History:
    """What a proposal is derived from.

    Args:
        tried: Choices of the points whose loss is known (points, units).
        losses: Their losses, better when lower.
        running: Choices of the points that are being tried.
        noise: Variance of the noise of each loss, as a multiple of the usual; None for 1 each. More
            than that has a loss that was only foretold.
    """

    tried: Picks
    losses: Floats
    running: Picks
    noise: Floats | None = None

    def reached(self, surrogate: Surrogate) -> tuple[Picks, Floats]:
        """Points whose loss was reached, or is expected to be, and these losses."""
        is_reached = np.ones(len(self.losses), bool) if self.noise is None else self.noise <= 1.0
        waited = surrogate.predict(self.running).medians
        return (
            np.concatenate([self.tried[is_reached], self.running]),
            np.concatenate([self.losses[is_reached], waited]),
        )


class KnownCostProposer:
    """Proposes points of a space whose costs are known.

    Args:
        units: The choices of each unit, with what each adds to the cost.
        base: Cost that no choice is part of.
        seed: Seed of draws.
        limit: The most that a point may cost; None for no limit.
        costs: Function that gives the exact costs of points, where they do not add up over units.
    """

    def __init__(
        self,
        units: Sequence[Sequence[Choice]],
        base: float,
        seed: int,
        limit: float | None = None,
        costs: Callable[[Picks], Floats] | None = None,
    ) -> None:
        self.seed = seed
        self._tables = [np.array([choice.cost for choice in choices]) for choices in units]
        self.spread = CostSpread(self._tables, base, seed, costs=costs)
        self._limit = np.inf if limit is None else limit
        self.spread.high = min(self.spread.high, self._limit)
        span = float(sum(np.ptp(table) for table in self._tables)) or 1.0
        is_whole = all(np.array_equal(table, np.rint(table)) for table in self._tables)
        steps = 1.0 if is_whole else STEPS / span
        self._whole = [np.rint(table * steps).astype(int) for table in self._tables]
        self._alikeness = Alikeness(units)

    def costs(self, picks: Picks) -> Floats:
        """The exact costs of points given as indices of choices (points, units)."""
        return np.asarray(self.spread.costs(picks), float)

    def propose(
        self, number: int, history: History, is_free: Callable[[tuple[int, ...]], bool]
    ) -> tuple[int, ...] | None:
        """The next point; the same arguments give the same.

        Args:
            number: Number of the proposal.
            history: History with two losses at least.
            is_free: Function that says whether a point may be proposed.

        Returns:
            The index of each unit's choice; None if no candidate is left.
        """
        generator = np.random.default_rng([self.seed, number])
        surrogate = self.surrogate(history, generator)
        surrogate.believe(history.running)
        known, losses = history.reached(surrogate)
        places, front, weakest = self._front(known, losses)
        candidates = self._candidates(surrogate, generator, known[places])
        candidates = candidates[self.costs(candidates) <= self._limit]
        costs = self.costs(candidates)
        most = max(self.spread.high, costs.max(initial=0.0))
        end = most + BEYOND * (most - self.spread.low)
        improvement = surrogate.predict(candidates).improvement
        gains = expected_gains(costs, improvement, front, (end, weakest))
        for index in np.argsort(-gains, kind="stable"):
            point = tuple(candidates[index].tolist())
            if is_free(point):
                return point
        return None

    def surrogate(self, history: History, generator: np.random.Generator) -> Surrogate:
        """The surrogate of a history; of a long one the nearest to the front, and random others."""
        tried, losses, noise = history.tried, history.losses, history.noise
        if len(losses) > MOST_TRIED:
            order = np.lexsort((losses, self.costs(tried)))
            excess = np.empty(len(losses))
            excess[order] = losses[order] - np.minimum.accumulate(losses[order])
            nearest = np.lexsort((losses, excess))
            others = generator.permutation(nearest[MOST_TRIED // 2 :])[: MOST_TRIED // 2]
            seen = np.sort(np.concatenate([nearest[: MOST_TRIED // 2], others]))
            tried, losses = tried[seen], losses[seen]
            noise = None if noise is None else noise[seen]
        return Surrogate(self._alikeness, tried, losses, noise)

    def _front(self, known: Picks, losses: Floats) -> tuple[list[int], Front, float]:
        """Places of the known points that are on the front, that front, and the weakest loss that
        counts."""
        costs = self.costs(known)
        places: list[int] = []
        for index in np.lexsort((losses, costs)).tolist():
            if costs[index] <= self._limit and (not places or losses[index] < losses[places[-1]]):
                places.append(index)
        found = losses[places] if places else losses
        span = float(np.ptp(found)) or float(np.ptp(losses)) or 1.0
        front = [(float(costs[place]), float(losses[place])) for place in places]
        return places, front, float(found.max()) + MARGIN * span

    def _candidates(
        self, surrogate: Surrogate, generator: np.random.Generator, front: Picks
    ) -> Picks:
        if self.spread.size <= CANDIDATES:
            return self.spread.candidates(generator)
        drawn = surrogate.draw_tables(generator, DRAWS)
        found = [self._solve(table) for table in drawn]
        found += [generator.permutation(self.spread.candidates(generator))[:RANDOM]]
        found += [self._changes(front, generator)]
        return np.unique(np.concatenate(found), axis=0)

    def _changes(self, points: Picks, generator: np.random.Generator) -> Picks:
        """Points with one choice changed at random."""
        if not len(points):
            return points
        changed = points[generator.integers(0, len(points), RANDOM)]
        units = generator.integers(0, len(self._tables), RANDOM)
        counts = np.array([len(table) for table in self._tables])
        changed[np.arange(RANDOM), units] = generator.integers(0, counts[units])
        return changed

    def _solve(self, table: Floats) -> Picks:
        """The points on the front of a drawn table."""
        scale = STEPS / (float(np.ptp(table)) or 1.0)
        losses = np.split(np.rint(table * scale).astype(int), self._alikeness.starts[1:])
        modules = [
            [Item(int(cost), int(loss)) for cost, loss in zip(costs, of_unit, strict=True)]
            for costs, of_unit in zip(self._whole, losses, strict=True)
        ]
        return np.array([solution.chosen for solution in solve(modules)], np.int64)


def expected_gains(
    costs: Floats,
    improvement: Callable[[float], Floats],
    front: Front,
    reference: tuple[float, float],
) -> Floats:
    """Expected growth of the hypervolume by each of some candidates.

    Args:
        costs: Their costs, which are exact.
        improvement: Function that gives by how much each is expected to fall below a loss.
        front: Costs and losses that nothing dominates, by rising cost.
        reference: Cost and loss up to which hypervolume counts.
    """
    edges = [-np.inf, *(cost for cost, _ in front), reference[0]]
    levels = [reference[1], *(min(loss, reference[1]) for _, loss in front)]
    gains = np.zeros(len(costs))
    for begin, end, level in zip(edges, edges[1:], levels, strict=False):
        widths = np.clip(min(end, reference[0]) - np.maximum(begin, costs), 0.0, None)
        gains += widths * improvement(level)
    return gains
