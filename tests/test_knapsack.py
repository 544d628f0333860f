"""The knapsack against all choices there are."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from nas_attn.knapsack import Item, Solution, solve
from nas_attn.pareto import non_dominated

options = st.builds(Item, st.integers(0, 9), st.integers(-4, 9), st.integers(0, 3))
problems = st.lists(st.lists(options, min_size=1, max_size=5), min_size=1, max_size=5)


def brute_force(modules: list[list[Item]]) -> dict[tuple[int, int], int]:
    """The least tie of each undominated pair of cost and loss."""
    sums: dict[tuple[int, int], int] = {}
    for chosen in itertools.product(*modules):
        point = (sum(o.cost for o in chosen), sum(o.loss for o in chosen))
        tie = sum(o.tie for o in chosen)
        sums[point] = min(tie, sums.get(point, tie))
    points = list(sums)
    return {points[index]: sums[points[index]] for index in non_dominated(points)}


def tie_of(solution: Solution, modules: list[list[Item]]) -> int:
    return sum(options[o].tie for options, o in zip(modules, solution.chosen, strict=True))


@settings(max_examples=200)
@given(problems)
def test_all_budgets_against_brute_force(modules: list[list[Item]]) -> None:
    found = solve(modules)
    assert {(s.cost, s.loss): tie_of(s, modules) for s in found} == brute_force(modules)
    assert [s.cost for s in found] == sorted({s.cost for s in found})
    for solution in found:
        picked = [options[o] for options, o in zip(modules, solution.chosen, strict=True)]
        assert sum(option.cost for option in picked) == solution.cost
        assert sum(option.loss for option in picked) == solution.loss


def test_nothing_to_choose() -> None:
    assert solve([[Item(3, -1)], [Item(2, 5)]]) == [Solution(5, 4, (0, 0))]
