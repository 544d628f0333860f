"""What a search would have reached with as many random proposals, by its own surrogate.

The trials of a search tell what other plans may have lost (`nas_attn.known_cost.surrogate`). Random
plans are drawn as a random sampler proposes them, their losses from the surrogate's posterior with
its noise, and the hypervolume of each such search is followed. Where the search itself lies above
the band, its sampler earned its keep; within it, luck may have done as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nas_attn.analysis.hypervolume import HypervolumeCurve, growth, progress_of
from nas_attn.analysis.trials import Trials
from nas_attn.engine.store import TrialStore

if TYPE_CHECKING:
    from nas_attn.engine.known_costs import KnownCostSearch  # reading a band needs no scipy

RANDOM_BAND = "random_band"
"""Under this name the record keeps the band."""
DRAWS = 50
"""Random searches that are drawn."""
LEAST_TRIALS = 8
"""Trained trials without which a surrogate says little."""
MOST_TRIALS = 300
"""Trials of a random search, at most; a longer search has no band."""
SHARES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class RandomBand:
    """Hypervolume of random searches after each of their trials.

    Args:
        reference: Point up to which it is measured, as of the search itself.
        low: What nine of ten random searches exceed, after each trial.
        middle: The median.
        high: What one of ten exceeds.
    """

    reference: tuple[float, ...]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]

    def shares(self, progress: HypervolumeCurve) -> dict[str, list[float]] | None:
        """The band as shares of what a search ended with; None if it belongs to another point."""
        if tuple(self.reference) != tuple(progress.reference.point):
            return None
        return {
            name: [value / progress.final for value in getattr(self, name)]
            for name in ("low", "middle", "high")
        }

    def words(self, progress: HypervolumeCurve) -> str:
        """What random proposals would have reached at the end; empty if it is not known."""
        shares = self.shares(progress)
        if shares is None:
            return ""
        low, middle, high = (shares[name][-1] for name in ("low", "middle", "high"))
        return (
            f"as many random proposals would have reached {middle:.0%} of it ({low:.0%} to "
            f"{high:.0%} in eight of ten), by what this search's losses tell of other plans."
        )


def random_band(trials: Trials, known: KnownCostSearch) -> RandomBand | None:
    """Draw random searches of as many trials as a search had.

    Args:
        trials: Trials of the search.
        known: What its losses tell of other plans.

    Returns:
        None without a baseline, with two costs, and with too few or too many trials.
    """
    progress, baseline = progress_of(trials), trials.baseline
    trained = [trial for trial in trials.trained if trial.duplicate_of is None]
    count = 0 if progress is None else progress.trials[-1] - 1
    is_fit = len(trained) >= LEAST_TRIALS and count <= MOST_TRIALS
    if progress is None or baseline is None or baseline.point is None or not is_fit:
        return None
    if len(baseline.point) != 2:
        return None
    loss, cost = baseline.point
    curves = [
        growth(
            [(loss, cost), *zip(losses.tolist(), costs.tolist(), strict=True)],
            progress.reference.point,
        )
        for costs, losses in known.random_searches(trained, count, DRAWS)
    ]
    if not curves:
        return None
    low, middle, high = np.quantile(curves, SHARES, axis=0).tolist()
    return RandomBand(progress.reference.point, tuple(low), tuple(middle), tuple(high))


def keep_band(store: TrialStore, band: RandomBand | None) -> None:
    """Write a band down, as looking at a record asks no model."""
    kept = None if band is None else {k: list(v) for k, v in asdict(band).items()}
    if store.metadata().get(RANDOM_BAND) != kept:
        store.set_metadata(RANDOM_BAND, kept)


def recorded_band(metadata: Mapping[str, Any]) -> RandomBand | None:
    """The band on record; None if there is none."""
    kept = metadata.get(RANDOM_BAND)
    return None if kept is None else RandomBand(**{k: tuple(v) for k, v in kept.items()})
