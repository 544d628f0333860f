"""The front, on unsorted data, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from nas_attn.pareto import dominates, non_dominated

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
