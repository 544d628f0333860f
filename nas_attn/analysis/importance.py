"""What mattered: how the choices of each unit go with the loss, at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import SiteShape

LEAST_TRIALS = 12
"""Trained trials below which nothing is said."""
SHUFFLES = 400
"""Times that losses are dealt out again at random to learn what chance alone explains."""


@dataclass(frozen=True)
class Effect:
    """What one scheme at one unit goes with.

    Args:
        scheme: Name of the scheme.
        count: Trials that have it there.
        mean: Mean distance of the loss from what the trial's cost predicts; better when lower.
        error: Standard error of that mean; None with one trial.
    """

    scheme: str
    count: int
    mean: float
    error: float | None


@dataclass(frozen=True)
class Importance:
    """How much one unit matters.

    Args:
        unit: A site, or a layer of it where plans decide layer by layer.
        share: Share of the variance that cost leaves which the unit's scheme explains beyond the
            average of chance (epsilon squared, 0 at least).
        chance: The share that the largest of all units reaches in one of twenty cases where schemes
            have no effect at all.
        effects: Effects of its schemes, from good to bad.
    """

    unit: str
    share: float
    chance: float
    effects: tuple[Effect, ...]

    @property
    def is_clear(self) -> bool:
        """Whether the share is more than chance gives."""
        return self.share > self.chance


def importance_of(trials: Trials, shapes: Mapping[str, SiteShape]) -> list[Importance]:
    """Units from the most important to the least; none with few trials.

    A parabola through loss over cost takes out what size alone does; what is left is compared
    among the schemes of each unit. Units that never vary are left out.

    Args:
        trials: Trials of a study.
        shapes: Shapes of the model's sites.
    """
    trained = [t for t in trials.trained if t.plan is not None and t.cost is not None]
    if len(trained) < LEAST_TRIALS:
        return []
    sign = -1.0 if trials.objectives.maximise else 1.0
    residuals = _residuals(
        np.array([float(trial.cost or 0) for trial in trained]),
        np.array([sign * (trial.loss or 0.0) for trial in trained]),
    )
    total = float(residuals @ residuals)
    units = {
        unit: np.unique(schemes, return_inverse=True)
        for unit, schemes in _units(trained, shapes).items()
        if len(set(schemes)) > 1
    }
    if total <= 0 or not units:
        return []
    chance = _chance([places for _, places in units.values()], residuals)
    found = []
    for unit, (names, places) in units.items():
        effects = sorted(
            (_effect(str(name), residuals[places == place]) for place, name in enumerate(names)),
            key=lambda effect: effect.mean,
        )
        found.append(Importance(unit, _explained(places, residuals), chance, tuple(effects)))
    return sorted(found, key=lambda importance: -importance.share)


def _chance(units: Sequence[np.ndarray], residuals: np.ndarray) -> float:
    """The 95 % quantile of the largest share of any unit where residuals are dealt out at random.

    The largest, because that is the one that people look at.
    """
    random = np.random.default_rng(1)
    largest = []
    for _ in range(SHUFFLES):
        dealt = random.permutation(residuals)
        largest.append(max(_explained(places, dealt) for places in units))
    return float(np.quantile(largest, 0.95))


def _residuals(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    spread = float(costs.std()) or 1.0
    scaled = (costs - costs.mean()) / spread
    degree = min(2, len(set(costs.tolist())) - 1)
    left: np.ndarray = losses - np.polyval(np.polyfit(scaled, losses, degree), scaled)
    return left


def _units(trained: Sequence[TrialRecord], shapes: Mapping[str, SiteShape]) -> dict[str, list[str]]:
    """The scheme that each trial has at each unit; whole sites where no trial decides by layer."""
    by_layer: dict[str, list[str]] = {}
    for site, shape in shapes.items():
        layers = [
            [choice.scheme for choice in trial.plan.layers(site, shape.num_layers)]
            for trial in trained
            if trial.plan is not None
        ]
        if all(len(set(row)) == 1 for row in layers):
            by_layer[site] = [row[0] for row in layers]
            continue
        for layer in range(shape.num_layers):
            by_layer[f"{site}.{layer}"] = [row[layer] for row in layers]
    return by_layer


def _effect(scheme: str, values: np.ndarray) -> Effect:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    error = None if spread is None else spread / len(values) ** 0.5
    return Effect(scheme, len(values), float(np.mean(values)), error)


def _explained(places: np.ndarray, residuals: np.ndarray) -> float:
    """Epsilon squared (Kelley 1935): the share explained, less what chance explains on average.

    Args:
        places: (trials) the scheme of each trial, counted from 0.
        residuals: (trials)
    """
    counts = np.bincount(places)
    degrees = len(residuals) - len(counts)
    if degrees <= 0:
        return 0.0
    means = np.bincount(places, residuals) / counts
    within = float(np.square(residuals - means[places]).sum())
    total = float(np.square(residuals).sum())
    return max(0.0, (total - within - (len(counts) - 1) * within / degrees) / total)
