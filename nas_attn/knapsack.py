"""The multiple-choice knapsack: one option for each module, solved exactly for all budgets at once.

Losses that add up over modules make the best plan at every size a knapsack: of each module's
options one is taken, and for every sum of costs the least sum of losses is wanted (Kellerer,
Pferschy and Pisinger 2004, chapter 11). Dynamic programming over modules keeps, of all sums so far,
those that no other dominates; in whole numbers nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Item:
    """What may be chosen for a module.

    Args:
        cost: Cost in units of the known objective.
        loss: Loss in some small unit; may be negative.
        tie: Rank that decides among equals, the smaller the better.
    """

    cost: int
    loss: int
    tie: int = 0


@dataclass(frozen=True)
class Solution:
    """One choice of everything that no other dominates.

    Args:
        cost: Cost of all modules together.
        loss: Loss of all modules together.
        chosen: The index of each module's option.
    """

    cost: int
    loss: int
    chosen: tuple[int, ...]


def solve(modules: Sequence[Sequence[Item]]) -> list[Solution]:
    """All undominated choices, from cheap to dear; of equal cost and loss that of the least tie.

    Args:
        modules: The options of each; at least one.
    """
    cost = loss = tie = np.zeros(1, np.int64)
    steps: list[tuple[Integers, Integers]] = []
    for options in modules:
        terms = np.array([(o.cost, o.loss, o.tie) for o in options], np.int64).T
        sums = [
            (terms[part][:, None] + sofar[None, :]).ravel()
            for part, sofar in enumerate((cost, loss, tie))
        ]
        kept = _undominated(*sums)
        steps.append((kept // len(cost), kept % len(cost)))
        cost, loss, tie = (total[kept] for total in sums)
    chosen = np.empty((len(modules), len(cost)), np.int64)
    places = np.arange(len(cost))
    for module in range(len(modules) - 1, -1, -1):
        option, before = steps[module]
        chosen[module] = option[places]
        places = before[places]
    return [
        Solution(int(cost[place]), int(loss[place]), tuple(int(o) for o in chosen[:, place]))
        for place in range(len(cost))
    ]


def _undominated(cost: Integers, loss: Integers, tie: Integers) -> Integers:
    """Places of the sums that no other dominates, by rising cost."""
    order = np.lexsort((tie, loss, cost))
    best = np.minimum.accumulate(loss[order])
    # The first of its cost and loss has the least tie, and it must beat all that is cheaper.
    is_better = np.concatenate([[True], loss[order][1:] < best[:-1]])
    kept: Integers = order[is_better]
    return kept
