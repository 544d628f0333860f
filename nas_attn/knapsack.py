"""The multiple-choice knapsack: one option for each module, solved exactly for all budgets at once.

Losses that add up over modules make the best plan at every size a knapsack: of each module's
options one is taken, and for every sum of costs the least sum of losses is wanted (Kellerer,
Pferschy and Pisinger 2004, chapter 11). Dynamic programming over modules keeps, of all sums so far,
those that no other dominates; in whole numbers nothing is rounded. Further costs may have limits,
or count as much as the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas_attn.errors import SearchError

Integers = npt.NDArray[np.int64]

MOST_SUMS = 500_000
"""Sums that are kept at a time; with 20 options a module they take half a gigabyte."""


@dataclass(frozen=True)
class Item:
    """What may be chosen for a module.

    Args:
        cost: Cost in units of the known objective.
        loss: Loss in some small unit; may be negative.
        tie: Rank that decides among equals, the smaller the better.
        others: Further costs.
    """

    cost: int
    loss: int
    tie: int = 0
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Solution:
    """One choice of everything that no other dominates.

    Args:
        cost: Cost of all modules together.
        loss: Loss of all modules together.
        chosen: The index of each module's option.
        others: Further costs of all modules together.
    """

    cost: int
    loss: int
    chosen: tuple[int, ...]
    others: tuple[int, ...] = ()


def solve(
    modules: Sequence[Sequence[Item]], limits: Sequence[int] = (), *, surface: bool = False
) -> list[Solution]:
    """All undominated choices, from cheap to dear.

    Of equal costs and losses that of the least tie; where there are further costs, the least of
    these comes first.

    Args:
        modules: The options of each; at least one, and all with as many further costs.
        limits: The most that each of the first further costs may come to.
        surface: Whether a choice is dominated only by one that is no worse in the first further
            cost either; in the others, those within the limits are equal.

    Raises:
        SearchError: Choices have so many sums of costs that they do not fit into memory.
    """
    tables = [
        np.array([(o.cost, *o.others, o.loss, o.tie) for o in options], np.int64).T
        for options in modules
    ]
    sums: Integers = np.zeros((len(tables[0]), 1), np.int64)
    # What the modules that follow add at the least.
    rest = np.cumsum([table.min(1) for table in tables[::-1]], 0)[::-1] - [
        table.min(1) for table in tables
    ]
    steps: list[tuple[Integers, Integers]] = []
    for terms, least in zip(tables, rest, strict=True):
        before = sums.shape[1]
        sums = (terms[:, :, None] + sums[:, None, :]).reshape(len(terms), -1)
        possible = np.arange(sums.shape[1])
        for place, limit in enumerate(limits, start=1):
            possible = possible[sums[place, possible] + least[place] <= limit]
        kept = possible[_undominated(sums[:, possible])]
        if len(kept) > MOST_SUMS:
            raise SearchError(
                f"{len(kept):,} sums of costs are too many to choose among: set limits on fewer "
                "costs, or tighter ones"
            )
        steps.append((kept // before, kept % before))
        sums = sums[:, kept]
    places = _undominated(sums[[0, 1, -2, -1] if surface else [0, -2, -1]])
    chosen = np.empty((len(modules), len(places)), np.int64)
    ends = places
    for module in range(len(modules) - 1, -1, -1):
        option, before_it = steps[module]
        chosen[module] = option[places]
        places = before_it[places]
    cost, *others, loss, _ = sums[:, ends].tolist()
    return [
        Solution(cost[n], loss[n], tuple(of_one), tuple(other[n] for other in others))
        for n, of_one in enumerate(chosen.T.tolist())
    ]


def _undominated(sums: Integers) -> Integers:
    """Places of the sums (costs..., loss, tie) that no other dominates, by rising cost.

    With three costs or more only those go that are no better in the third and further.
    """
    costs, loss, tie = sums[:-2], sums[-2], sums[-1]
    if not loss.size:
        return np.arange(0)
    distinct = [costs[0]]
    for cost in costs[1:]:
        if not any(np.ptp(cost - known) == 0 for known in distinct):
            distinct.append(cost)
    # By rising cost, then by the second; the first of the same costs and loss has the least tie.
    order: Integers = np.lexsort((tie, loss, *distinct[1:2], distinct[0], *distinct[2:]))
    if len(distinct) == 1:
        return order[_is_better(loss[order])]
    kept = [
        group[_is_better_of_two(distinct[0][group], distinct[1][group], loss[group])]
        for group in _runs(order, distinct[2:])
    ]
    found = np.concatenate(kept)
    return found[np.argsort(costs[0][found], kind="stable")]


def _is_better(loss: Integers) -> npt.NDArray[np.bool_]:
    """Which losses are below all before them."""
    best = np.minimum.accumulate(loss)
    return np.concatenate([[True], loss[1:] < best[:-1]])


def _is_better_of_two(first: Integers, second: Integers, loss: Integers) -> npt.NDArray[np.bool_]:
    """Which losses, sorted by both costs, are below all of no more than their costs."""
    values, rank = np.unique(second, return_inverse=True)
    least = np.full(len(values), np.iinfo(np.int64).max)  # of what costs no more than each value
    better = np.zeros(len(loss), bool)
    starts = np.flatnonzero(np.diff(first, prepend=first[0] - 1))
    for start, end in zip(starts, [*starts[1:], len(first)], strict=True):
        ranks, losses = rank[start:end], loss[start:end]
        wins = _is_better(losses) & (losses < least[ranks])
        better[start:end] = wins
        np.minimum.at(least, ranks[wins], losses[wins])
        np.minimum.accumulate(least, out=least)
    return better


def _runs(order: Integers, keys: Sequence[Integers]) -> list[Integers]:
    """Sorted places, split where one of the keys changes."""
    if not keys:
        return [order]
    changes = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return np.split(order, np.flatnonzero(changes) + 1)
