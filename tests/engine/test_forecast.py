"""Forecasts of final losses: against refits one by one, and how often their bounds hold."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from nas_attn.engine.forecast import (
    PENALTY,
    forecast_final,
    left_out,
    misses_allowed,
    within_fences,
)
from nas_attn.simulation.synthetic import ReplayConfig, synthetic_curve
from tests.helpers.fakes import make_sizer, make_space


def unsorted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses and costs of trials, the last of which has not finished, and the finals of others."""
    generator = np.random.default_rng(seed)
    columns = generator.normal(size=(count + 1, 2)) * [0.3, 1.5] + [4.0, 11.0]
    finals = columns[:-1, 0] - 0.2 * columns[:-1, 1] + 0.1 * generator.normal(size=count)
    return columns, finals


def predicted_without(left: int, columns: np.ndarray, finals: np.ndarray) -> float:
    """What the other trials say of one: least squares with a row for each penalty."""
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    design = np.column_stack([np.ones(len(scaled)), scaled])
    rows = np.vstack([np.delete(design, left, axis=0), math.sqrt(PENALTY) * np.eye(3)[1:]])
    fitted, *_ = np.linalg.lstsq(rows, np.append(np.delete(finals, left), [0.0, 0.0]), rcond=None)
    return float(design[left] @ fitted)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_out_is_predicted_as_by_refits(seed: int) -> None:
    columns, finals = unsorted(14, seed)
    expected, excesses, slopes = left_out(columns, finals)
    for final in (-3.0, 2.5):
        all_finals = np.append(finals, final)
        refits = [predicted_without(i, columns, all_finals) for i in range(15)]
        np.testing.assert_allclose(excesses + slopes * final, np.array(refits[:-1]) - finals)
        assert expected == pytest.approx(refits[-1])


def test_what_lies_far_out_is_moved_to_the_fences() -> None:
    columns = np.array([[7.0, 1.0], [5.0, 1.0], [99.0, 1.0], [6.0, 1.0], [8.0, 1.0]])
    assert within_fences(columns).tolist() == [[7, 1], [5, 1], [11, 1], [6, 1], [8, 1]]


@pytest.mark.parametrize(("count", "coverage"), [(9, 0.9), (14, 0.8), (20, 0.5), (30, 0.95)])
def test_the_bound_is_the_least_final_loss_that_is_not_ruled_out(
    count: int, coverage: float
) -> None:
    """A final loss is ruled out if at most 1 - coverage of all ends as far below its prediction."""
    columns, finals = unsorted(count, count)
    columns[-1, 0] += 99.0  # so large a loss that it does not bound the forecast
    loss, cost = columns[-1, 0], math.expm1(columns[-1, 1])
    known, costs = columns[:-1, 0], np.expm1(columns[:-1, 1])
    bound = forecast_final(known, costs, finals, loss=loss, cost=cost, coverage=coverage).best

    fenced = within_fences(columns)

    def share_as_far_below(final: float) -> float:
        all_finals = np.append(finals, final)
        refits = [predicted_without(i, fenced, all_finals) for i in range(count + 1)]
        excesses = np.array(refits) - all_finals
        return float(np.mean(excesses >= excesses[-1]))

    assert share_as_far_below(bound - 1e-6) <= 1 - coverage + 1e-9
    assert share_as_far_below(bound + 1e-6) > 1 - coverage + 1e-9


@pytest.mark.parametrize(
    ("count", "coverage", "allowed"),
    [(8, 0.9, 0), (9, 0.9, 1), (18, 0.9, 1), (19, 0.9, 2), (3, 0.8, 0), (4, 0.8, 1),
     (99, 0.55, 45), (0, 0.5, 0), (1, 0.5, 1)],
)  # fmt: skip
def test_misses_allowed(count: int, coverage: float, allowed: int) -> None:
    assert misses_allowed(count, coverage) == allowed
    same = [3.0] * count
    found = forecast_final(same, same, same, loss=3.0, cost=3.0, coverage=coverage)
    assert found.best == (pytest.approx(3.0) if allowed else -math.inf), "all alike, and no error"


@pytest.mark.parametrize(("count", "coverage"), [(9, 0.9), (24, 0.9), (24, 0.7)])
def test_bounds_hold_as_often_as_they_should(count: int, coverage: float) -> None:
    """Curves of plans drawn at random, at validation 3 of 9; exact but for the drawing."""
    space, sizer, generator = make_space(decide="layer"), make_sizer(), random.Random(count)
    config = ReplayConfig(noise=0.1)

    def drawn() -> tuple[float, int, float]:
        plan = space.plan([generator.choice(unit.alternatives) for unit in space.units])
        cost, seed = sizer.size(plan).total, generator.randrange(10**6)
        losses = [p.loss for p in synthetic_curve(config, plan.dumps(), cost, seed).points]
        return min(losses[:3]), cost, min(losses)

    trials = [drawn() for _ in range(800)]
    misses, rounds = 0, 1500
    for _ in range(rounds):
        *finished, (loss, cost, final) = generator.sample(trials, count + 1)
        found = forecast_final(
            *zip(*finished, strict=True), loss=loss, cost=cost, coverage=coverage
        )
        misses += final < found.best
    share = misses_allowed(count, coverage) / (count + 1)
    assert share <= 1 - coverage + 1e-9
    assert misses / rounds == pytest.approx(share, abs=0.03)
