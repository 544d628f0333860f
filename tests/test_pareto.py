"""Fronts and their volume, on unsorted data, against the definition."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_attn.pareto import dominates, hypervolume, non_dominated

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


def test_domination() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


@given(points)
def test_equals_a_staircase_scan(cloud: list[tuple[int, int]]) -> None:
    """Sweeping by the first objective, a point is on the front if it is better in the second than
    everything before, or equals a point that is."""
    best, stairs = float("inf"), set()
    for first, second in sorted(set(cloud)):
        if second < best:
            best = second
            stairs.add((first, second))
    assert non_dominated(cloud) == [i for i, point in enumerate(cloud) if point in stairs]


def test_hypervolume_by_hand() -> None:
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([(1.0, 3.0), (2.0, 1.0)], (4.0, 4.0)) == 3.0 + 2.0 * 2.0
    # Dominated, equal, on the border and beyond it: nothing more.
    more = [(1.0, 3.0), (2.0, 1.0), (2.0, 1.0), (3.0, 3.0), (4.0, 0.0), (0.0, 5.0)]
    assert hypervolume(more, (4.0, 4.0)) == 7.0


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_hypervolume_is_the_share_of_cells_that_are_dominated(objectives: int) -> None:
    generator = random.Random(objectives)
    size = 8
    points = [tuple(generator.randrange(size) for _ in range(objectives)) for _ in range(9)]
    cells = itertools.product(range(size), repeat=objectives)
    dominated = sum(
        any(all(a <= b for a, b in zip(point, cell, strict=True)) for point in points)
        for cell in cells
    )
    assert hypervolume(points, (float(size),) * objectives) == dominated
