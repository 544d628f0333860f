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


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that points dominate, up to a reference point that is worse in every objective.

    What does not lie below the reference in all objectives counts nothing.
    """
    inside = [tuple(p) for p in points if all(a < b for a, b in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in inside)
    # Slices across the last objective, each as high as the next point of it allows.
    inside.sort(key=lambda point: point[-1])
    tops = [*(point[-1] for point in inside[1:]), reference[-1]]
    return sum(
        (top - point[-1]) * hypervolume([p[:-1] for p in inside[: count + 1]], reference[:-1])
        for count, (point, top) in enumerate(zip(inside, tops, strict=True))
        if top > point[-1]
    )
