"""Where a learning curve will end, as far as the finished curves of the same search tell.

Final losses are explained by a ridge regression on the best losses at one validation and on the
logarithm of a cost. What it foretells is made safe by conformal prediction (Vovk, Gammerman and
Shafer 2005; one-sided and in closed form for ridge regression: Burnaev and Vovk 2014). For a final
loss that the trial might have, every trial is predicted from all others, this one included; the
loss is ruled out if hardly any other trial ends as far below its prediction. The bound that follows
holds in finite samples, whatever the regression is worth, if the trial is exchangeable with the
finished ones. The plain jackknife, which predicts finished trials from one another alone, comes
close to it but guarantees nothing, and the jackknife+ (Barber et al. 2021) allows twice the misses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PENALTY = 0.1
"""Of the squares of the coefficients, the columns being standardised."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Where a trial will end.

    Args:
        expected: The final loss that the regression predicts; nan without finished trials.
        best: The least final loss that the coverage leaves possible; -inf where too few trials have
            finished to tell.
    """

    expected: float
    best: float


def misses_allowed(finished: int, coverage: float) -> int:
    """How many finished trials may end below the bounds that they would have had.

    Where it is 0 there is no bound: a coverage of 0.9 takes 9 finished trials.

    Args:
        finished: Number of finished trials.
        coverage: Probability with which a bound is to hold.
    """
    # 100 * 0.55 is a little more than 55.
    return finished + 1 - math.ceil(round((finished + 1) * coverage, 9))


def forecast_final(
    losses: ArrayLike,
    costs: ArrayLike,
    finals: ArrayLike,
    *,
    loss: float,
    cost: float,
    coverage: float,
) -> Forecast:
    """Foretell the final loss of a trial from those that have finished.

    All losses are better when lower. What is foretold is at most the best loss so far.

    Args:
        losses: Best loss of each finished trial up to the same validation.
        costs: Cost of each finished trial, not negative.
        finals: Final loss of each finished trial.
        loss: Best loss of the trial so far.
        cost: Cost of the trial, not negative.
        coverage: Probability, below 1, with which the trial ends at the bound or above it, if it is
            exchangeable with the finished ones.
    """
    known = np.asarray(finals, dtype=float)
    if not len(known):
        return Forecast(expected=math.nan, best=-math.inf)
    columns = np.stack([np.append(losses, loss), np.log1p(np.append(costs, cost))], axis=1)
    expected, excesses, slopes = left_out(within_fences(columns), known)
    bound, allowed = -math.inf, misses_allowed(len(known), coverage)
    if allowed:
        # Where the trial ends as far below its prediction as a finished one below its own.
        equal = np.full(len(known), -np.inf)
        np.divide(expected - excesses, 1 + slopes, out=equal, where=slopes > -1)
        bound = float(np.partition(equal, allowed - 1)[allowed - 1])
    return Forecast(expected=min(expected, loss), best=min(bound, loss))


def within_fences(columns: Floats) -> Floats:
    """Move what lies far out in a column to Tukey's fences, 1.5 interquartile ranges away.

    A trial beyond all others would else be one of which nothing can be said. All are treated alike,
    as those have to be that are exchangeable.
    """
    low, high = np.quantile(columns, [0.25, 0.75], axis=0)
    reach = 1.5 * (high - low)
    fenced: Floats = np.clip(columns, low - reach, high + reach)
    return fenced


def left_out(columns: Floats, finals: Floats) -> tuple[float, Floats, Floats]:
    """Predict every trial from all others by ridge regression, each in turn left out.

    Args:
        columns: What trials are predicted from, one row each; the last is of the trial that has not
            finished.
        finals: Final losses of all but the last.

    Returns:
        What the last is predicted to end with; by how much each of the others is predicted too high
        were the last one's final loss 0; and by how much more for each unit of it.
    """
    centred = columns - columns.mean(axis=0)
    spread = centred.std(axis=0)
    is_same = spread <= 1e-9 * np.abs(columns).max(axis=0)  # all but rounding
    design = np.column_stack([np.ones(len(centred)), centred / np.where(is_same, 1.0, spread)])
    penalties = np.diag([0.0, *[PENALTY] * columns.shape[1]])
    solved = np.linalg.solve(design.T @ design + penalties, design.T)
    fitted = design @ (solved[:, :-1] @ finals)
    kept = 1 - np.einsum("ij,ji->i", design, solved)
    excesses = (fitted[:-1] - finals) / kept[:-1]
    slopes = (design[:-1] @ solved[:, -1]) / kept[:-1]
    return float(fitted[-1] / kept[-1]), excesses, slopes
