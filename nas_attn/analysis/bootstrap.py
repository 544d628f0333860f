"""Searches drawn again, for the intervals of ratios of their hypervolumes.

Every search is drawn again on its own, as many times as there are replicates:

- Where every search has trials of several seeds, each trial's mean loss gets normal noise with the
  standard error of trials of such a loss (see `Noise`). Plans and costs stay, so the interval is
  for the ratio that the same plans have without noise; one more training of them has noise of its
  own, too, and varies more. (Seeds themselves are not drawn with replacement: of two or three that
  gives too little noise.)
- Otherwise trials other than the baseline are drawn with replacement. This says how far the ratio
  hangs on single trials. It covers no noise of training.

Neither covers another run of the search, of which one run says nothing. A front keeps the best of
what was drawn, so noise added to noise makes hypervolumes too large, and trials left out make them
too small. The interval is therefore the drawn ratios moved so that their median is the observed
ratio, truncated at zero. Trials that searches share are taken to be independent, which makes the
interval wider than it need be. There is no interval where the first search's hypervolume vanishes
in some replicate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas_attn.analysis.noise import Noise
from nas_attn.analysis.searches import RunSummary, point_of


def replicates_of(
    search: RunSummary,
    corner: tuple[float, float],
    random: np.random.Generator,
    count: int,
    noise: Noise | None,
) -> NDArray[np.float64]:
    """Hypervolumes of a search drawn again.

    Args:
        search: The search.
        corner: First cost and loss of the reference point, both better when lower.
        random: Generator of the draws.
        count: Number of replicates.
        noise: Noise of its trials; None draws trials.

    Returns:
        Hypervolumes (count).
    """
    trained = sorted(search.trained, key=point_of)
    costs, losses = np.array([point_of(trial) for trial in trained]).T
    errors = np.array([noise.at(t.loss or 0.0).error if noise else 0.0 for t in trained])
    others = np.array([i for i, trial in enumerate(trained) if not trial.is_baseline], dtype=int)
    volumes = np.empty(count)
    for turn in range(count):
        if noise is not None:
            again = losses + errors * random.standard_normal(len(losses))
        else:
            again = losses.copy()
            # A loss as weak as the reference adds nothing.
            again[np.setdiff1d(others, random.choice(others, len(others)))] = corner[1]
        volumes[turn] = volume_of(costs, again, corner)
    return volumes


def volume_of(
    costs: NDArray[np.float64], losses: NDArray[np.float64], corner: tuple[float, float]
) -> float:
    """Hypervolume of points.

    Args:
        costs: Costs (points), ascending.
        losses: Losses (points).
        corner: First cost and loss of the reference point, both better when lower.
    """
    best = np.minimum.accumulate(np.minimum(losses, corner[1]))
    widths = np.diff(np.append(np.minimum(costs, corner[0]), corner[0]))
    return float(widths @ (corner[1] - best))


def interval_of(
    ratio: float | None, own: NDArray[np.float64], first: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """The 95 % interval of a ratio of hypervolumes; None if there is none.

    Args:
        ratio: The observed ratio, if there is one.
        own: Hypervolumes (count) of the search drawn again.
        first: Hypervolumes (count) of the search that it is measured by.
    """
    if ratio is None or not (first > 0).all():
        return None, None
    low, median, high = np.quantile(own / first, [0.025, 0.5, 0.975])
    return max(0.0, float(ratio + low - median)), float(ratio + high - median)
