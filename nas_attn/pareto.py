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
    chosen: list[int] = []
    # In lexicographic order a point can be dominated only by one that comes before it.
    for index in sorted(range(len(points)), key=lambda i: tuple(points[i])):
        # The last ones first: in two objectives one of them decides at once.
        if not any(dominates(points[other], points[index]) for other in reversed(chosen)):
            chosen.append(index)
    return sorted(chosen)
