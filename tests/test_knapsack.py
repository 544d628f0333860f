"""The knapsack against all choices there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_attn import knapsack
from nas_attn.errors import SearchError
from nas_attn.knapsack import Item, Solution, solve
from nas_attn.pareto import non_dominated

options = st.builds(Item, st.integers(0, 9), st.integers(-4, 9), st.integers(0, 3))
problems = st.lists(st.lists(options, min_size=1, max_size=5), min_size=1, max_size=5)


@st.composite
def problems_of_costs(draw: st.DrawFn) -> tuple[list[list[Item]], list[int]]:
    """Modules with one to three further costs, some of which equal the first, and limits."""
    count = draw(st.integers(1, 3))
    is_first = draw(st.lists(st.booleans(), min_size=count, max_size=count))

    def item() -> Item:
        cost = draw(st.integers(0, 6))
        others = [cost if same else draw(st.integers(0, 4)) for same in is_first]
        return Item(cost, draw(st.integers(-4, 9)), 0, tuple(others))

    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    limits = draw(st.lists(st.integers(0, 14), max_size=count))
    return [[item() for _ in range(size)] for size in sizes], limits


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


def all_sums(modules: list[list[Item]], limits: list[int]) -> list[tuple[int, ...]]:
    """Cost, further costs and loss of every choice within the limits."""
    sums = [
        (sum(o.cost for o in chosen), *map(sum, zip(*(o.others for o in chosen), strict=True)),
         sum(o.loss for o in chosen))
        for chosen in itertools.product(*modules)
    ]  # fmt: skip
    return [
        point for point in sums if all(a <= b for a, b in zip(point[1:-1], limits, strict=False))
    ]


@settings(max_examples=300)
@given(problems_of_costs())
def test_limits_on_further_costs_against_brute_force(
    problem: tuple[list[list[Item]], list[int]],
) -> None:
    modules, limits = problem
    points = list({(point[0], point[-1]) for point in all_sums(modules, limits)})
    found = solve(modules, limits)
    assert [(s.cost, s.loss) for s in found] == sorted(points[n] for n in non_dominated(points))
    for solution in found:
        picked = [options[o] for options, o in zip(modules, solution.chosen, strict=True)]
        others = tuple(map(sum, zip(*(option.others for option in picked), strict=True)))
        assert solution.others == others
        assert all(a <= b for a, b in zip(others, limits, strict=False))


@settings(max_examples=300)
@given(problems_of_costs())
def test_surfaces_against_brute_force(problem: tuple[list[list[Item]], list[int]]) -> None:
    modules, limits = problem
    points = {(point[0], point[1], point[-1]) for point in all_sums(modules, limits)}
    wanted = {
        point
        for point in points
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points
        )
    }
    found = solve(modules, limits, surface=True)
    assert sorted((s.cost, s.others[0], s.loss) for s in found) == sorted(wanted)
    assert [s.cost for s in found] == sorted(s.cost for s in found)


def test_nothing_to_choose() -> None:
    assert solve([[Item(3, -1)], [Item(2, 5)]]) == [Solution(5, 4, (0, 0))]


def test_a_limit_that_nothing_keeps() -> None:
    assert solve([[Item(3, -1, 0, (5,))], [Item(2, 5, 0, (4,))]], [8]) == []


def test_too_many_sums_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_SUMS", 3)
    modules = [[Item(n, 9 - n, 0, (9 - n,)) for n in range(5)]] * 2
    with pytest.raises(SearchError, match="5 sums of costs are too many to choose among"):
        solve(modules, [99])
