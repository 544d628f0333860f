"""What the losses of tried points tell of the others: a Gaussian process over units and choices.

A point picks one choice in every unit (a layer's attention, a parameter). The logarithm of its
loss, above a floor below all losses, is taken for a sum of one term a unit, and of what pairs of
units and the whole cost add:

    log(loss(x) - floor) = mean + sum over units u of g(u, x_u) + pairs(x) + size(x) + noise

The logarithm tells good losses apart better than bad ones, as a front needs it.

The terms g of alike choices are alike: those of one unit that lie near each other, of one group (a
site) with the same label, with the same label anywhere, of near costs anywhere, and what a
prediction says of each. How alike they are, and how large pairs and noise, is read off the losses:
each part is a fixed matrix times a variance, and the variances have the largest posterior density
(Rasmussen and Williams 2006, section 5.4; additive processes: Duvenaud et al. 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

from nas_attn.known_cost.spread import Floats, Picks

REACH = 0.3
"""Distance, as a share of the widest unit, at which choices are half alike."""
USUAL = {
    "own": 0.1,
    "near": 0.6,
    "group": 0.2,
    "label": 0.1,
    "cost": 0.4,
    "predicted": 3.0,
    "pairs": 0.2,
    "size": 0.1,
    "noise": 0.2,
}
"""Each part's share of the variance of logarithms, before any loss is seen; tables come first.
Predictions count most where there are any."""
TABLES = 6
DOUBT = 1.5
"""Standard deviation of the logarithm of these shares."""
LEAST, MOST = 1e-5, 30.0
"""Bounds of the shares."""
MEAN = 1.0
"""Variance of the mean of logarithms that have been brought to mean 0 and variance 1."""
FLOOR = 0.5
"""Standard deviations of the losses by which the floor lies below the least."""
MOST_FITTED = 250
"""Points that the shares are fitted to; all are conditioned on."""
STEPS = 40
"""Steps of the optimiser that fits the variances, at most."""


@dataclass(frozen=True)
class Choice:
    """What is known of one choice of a unit before anything is trained.

    Args:
        cost: What it adds to the known objective.
        group: Group of its unit, such as a site; units of a group are alike.
        label: Label of the choice; those of the same label are alike.
        place: Where it lies among the choices of its unit, from 0 to 1; None for where its cost
            puts it.
        predicted: What it adds to the loss by some prediction, in any unit.
    """

    cost: float
    group: str
    label: str
    place: float | None = None
    predicted: float = 0.0


class Alikeness:
    """How alike points are, part by part.

    Args:
        units: Choices of each unit.
    """

    def __init__(self, units: Sequence[Sequence[Choice]]) -> None:
        flat = [(unit, choice) for unit, choices in enumerate(units) for choice in choices]
        unit = np.array([u for u, _ in flat])
        cost = np.array([choice.cost for _, choice in flat])
        least = np.array([min(choice.cost for choice in choices) for choices in units])
        span = np.array([max(choice.cost for choice in choices) for choices in units]) - least
        share = (cost - least[unit]) / (span.max() or 1.0)
        place = [s if c.place is None else c.place for s, (_, c) in zip(share, flat, strict=True)]
        same_label = _equal([choice.label for _, choice in flat])
        predicted = _centred(np.array([choice.predicted for _, choice in flat]), unit)
        self.starts = np.cumsum([0, *(len(choices) for choices in units)])[:-1]
        self.count = len(flat)
        self._size = (cost - least[unit]) / (span.sum() or 1.0)
        self._pairs = max(1, len(units) * (len(units) - 1) // 2)
        parts = [
            np.eye(self.count),
            _equal(unit) * _near(np.array(place)),
            _equal([choice.group for _, choice in flat]) * same_label,
            same_label,
            _near(share),
            np.outer(predicted, predicted),
        ]
        self.tables = np.stack(parts).astype(float) / len(units)

    def one_hot(self, picks: Picks) -> Floats:
        """Points as rows of zeros and ones (points, choices of all units)."""
        rows = np.zeros((len(picks), self.count))
        np.put_along_axis(rows, picks + self.starts, 1.0, axis=1)
        return rows

    def between(self, one: Floats, other: Floats) -> Floats:
        """Each part but the noise, between points given as `one_hot` rows (parts, one, other)."""
        tables = [one @ table @ other.T for table in self.tables]
        return np.stack([*tables, self._in_pairs(one, other), self._in_size(one, other)])

    def covariance(self, variances: Floats, one: Floats, other: Floats) -> Floats:
        """The sum of these parts, each times its variance (one, other)."""
        further = zip(variances[TABLES:], (self._in_pairs, self._in_size), strict=True)
        summed = one @ self.table(variances) @ other.T
        return np.asarray(summed + sum(v * part(one, other) for v, part in further))

    def alone(self, variances: Floats, points: Floats) -> Floats:
        """The same of points with themselves (points)."""
        summed = np.einsum("pc,pc->p", points @ self.table(variances), points)
        return np.asarray(summed + variances[TABLES:].sum())

    def table(self, variances: Floats) -> Floats:
        """Covariance of the terms of choices (choices, choices)."""
        return np.asarray(np.tensordot(variances[:TABLES], self.tables, 1))

    def _in_pairs(self, one: Floats, other: Floats) -> Floats:
        same = one @ other.T
        return np.asarray(same * (same - 1) / (2 * self._pairs))

    def _in_size(self, one: Floats, other: Floats) -> Floats:
        return _near(one @ self._size, other @ self._size)


@dataclass(frozen=True)
class Beliefs:
    """Losses that some points may have, without noise.

    Args:
        means: Expected logarithms of the losses above the floor.
        spreads: Standard deviations of these logarithms, above 0.
        floor: Loss that none falls below.
    """

    means: Floats
    spreads: Floats
    floor: float

    @property
    def medians(self) -> Floats:
        """The losses that each point exceeds with probability one half."""
        return np.asarray(self.floor + np.exp(self.means))

    def improvement(self, level: float) -> Floats:
        """By how much each point is expected to fall below a loss, which is above the floor."""
        room = level - self.floor
        off = (np.log(room) - self.means) / self.spreads
        below = np.exp(self.means + self.spreads**2 / 2) * ndtr(off - self.spreads)
        return np.asarray(np.maximum(room * ndtr(off) - below, 0.0))


class Surrogate:
    """Losses of all points, given those of some.

    Args:
        alikeness: How alike points are.
        picks: Choices of the points that were tried (points, units); two at least.
        losses: Their losses.
        noise: Variance of the noise of each loss, as a multiple of the usual; None for 1 each.
    """

    def __init__(
        self, alikeness: Alikeness, picks: Picks, losses: Floats, noise: Floats | None = None
    ) -> None:
        self.alikeness = alikeness
        self._points = alikeness.one_hot(picks)
        self._floor = float(losses.min()) - FLOOR * (float(losses.std()) or 1.0)
        logs = np.log(losses - self._floor)
        self._shift = float(logs.mean())
        self._scale = float(logs.std()) or 1.0
        self._noise = np.ones(len(losses)) if noise is None else noise
        self._logs = (logs - self._shift) / self._scale
        self.variances = self._fit()
        self._condition()

    def predict(self, picks: Picks) -> Beliefs:
        """What losses points may have."""
        points = self.alikeness.one_hot(picks)
        across = self._covariance(points)
        left = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        alone = self.alikeness.alone(self.variances[:-1], points) + MEAN
        spread = np.sqrt(np.maximum(alone - np.einsum("op,op->p", left, left), 1e-12))
        means = across @ self._weights * self._scale + self._shift
        return Beliefs(means, spread * self._scale, self._floor)

    def draw(self, generator: np.random.Generator, picks: Picks) -> Floats:
        """Losses that points may turn out to have, noise included, drawn together."""
        points = self.alikeness.one_hot(picks)
        across = self._covariance(points)
        left = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        covariance = self.alikeness.covariance(self.variances[:-1], points, points) + MEAN
        values, vectors = np.linalg.eigh(covariance - left.T @ left)
        spread = vectors @ (
            np.sqrt(np.maximum(values, 0.0)) * generator.standard_normal(len(values))
        )
        spread += np.sqrt(self.variances[-1]) * generator.standard_normal(len(values))
        logs = (across @ self._weights + spread) * self._scale + self._shift
        return np.asarray(self._floor + np.exp(logs))

    def believe(self, picks: Picks) -> None:
        """Take points for tried, each with the logarithm that is expected of it."""
        if not len(picks):
            return
        points = self.alikeness.one_hot(picks)
        expected = self._covariance(points) @ self._weights
        self._points = np.concatenate([self._points, points])
        self._logs = np.concatenate([self._logs, expected])
        self._noise = np.concatenate([self._noise, np.ones(len(picks))])
        self._condition()

    def draw_tables(self, generator: np.random.Generator, count: int) -> Floats:
        """Draws of the terms of all choices (draws, choices), up to a constant; sums of terms order
        points as their losses do."""
        prior = self.alikeness.table(self.variances)
        across = prior @ self._points.T
        left = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        values, vectors = np.linalg.eigh(prior - left.T @ left)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn = across @ self._weights + generator.standard_normal((count, len(values))) @ root.T
        return np.asarray(drawn * self._scale)

    def _covariance(self, points: Floats) -> Floats:
        """Covariance of points with those that were tried."""
        return self.alikeness.covariance(self.variances[:-1], points, self._points) + MEAN

    def _condition(self) -> None:
        covariance = self._covariance(self._points)
        covariance += np.diag(self.variances[-1] * self._noise)
        self._factor, _ = cho_factor(covariance, lower=True, check_finite=False)
        self._weights = cho_solve((self._factor, True), self._logs, check_finite=False)

    def _fit(self) -> Floats:
        """The variances with the largest posterior density; of many points, every so many count."""
        chosen = slice(None, None, -(-len(self._logs) // MOST_FITTED))
        logs, points = self._logs[chosen], self._points[chosen]
        parts = self.alikeness.between(points, points)
        every = np.concatenate([parts, np.diag(self._noise[chosen])[None]])
        usual = np.log(list(USUAL.values()))

        def density(exponents: Floats) -> tuple[float, Floats]:
            """The negative logarithm of the density, and its slope."""
            variances = np.exp(exponents)
            covariance = np.tensordot(variances, every, 1) + MEAN
            factor = cholesky(covariance, lower=True, check_finite=False)
            inverse = cho_solve((factor, True), np.eye(len(logs)), check_finite=False)
            weights = inverse @ logs
            value = 0.5 * logs @ weights + np.log(np.diag(factor)).sum()
            slope = np.tensordot(every, inverse - np.outer(weights, weights), 2)
            off = (exponents - usual) / DOUBT**2
            return value + 0.5 * (off * (exponents - usual)).sum(), 0.5 * variances * slope + off

        bounds = [(np.log(LEAST), np.log(MOST))] * len(USUAL)
        options = {"maxiter": STEPS}
        found = minimize(
            density, usual, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        return np.asarray(np.exp(found.x))


def _equal(values: Any) -> npt.NDArray[np.bool_]:
    array = np.asarray(values)
    return np.asarray(array[:, None] == array)


def _near(one: Floats, other: Floats | None = None) -> Floats:
    """How near numbers are: 1 where they are equal, one half at `REACH`."""
    apart = one[:, None] - (one if other is None else other)
    return np.asarray(np.exp2(-((apart / REACH) ** 2)))


def _centred(values: Floats, unit: npt.NDArray[np.int64]) -> Floats:
    """Values without the mean of their unit, brought to a mean square of 1."""
    means = np.bincount(unit, values) / np.bincount(unit)
    values = values - means[unit]
    scale = float(np.sqrt(np.mean(values**2)))
    return values / scale if scale else values
