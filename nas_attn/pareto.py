"""Non-dominated points of several objectives, all minimised."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether `left` is nowhere worse than `right` and somewhere better."""
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def non_dominated(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, in the order given.

    Equal points are all kept.
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(dominates(other, point) for other in points)
    ]
