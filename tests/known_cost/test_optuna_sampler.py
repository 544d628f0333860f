"""The sampler in plain Optuna."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from nas_attn import KnownCostSampler
from nas_attn.errors import UsageError
from tests.helpers.paths import ROOT

SPACE: dict[str, BaseDistribution] = {
    "layers": IntDistribution(1, 4),
    "width": CategoricalDistribution([16, 32, 64]),
    "dropout": FloatDistribution(0.0, 0.4, step=0.1),
}


def product(params: dict[str, Any]) -> float:
    """A cost that does not add up over the parameters."""
    return float(params["layers"] * params["width"] ** 2)


def quality(params: dict[str, Any]) -> float:
    return float(params["width"] ** 0.5 + params["layers"] - 20 * (params["dropout"] - 0.2) ** 2)


def ask(study: optuna.Study) -> optuna.Trial:
    return study.ask(SPACE)


def make_study(seed: int = 1, **options: Any) -> optuna.Study:
    sampler = KnownCostSampler(product, SPACE, seed=seed, **options)
    return optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)


def test_a_study_that_maximises_beside_a_cost_that_does_not_add_up() -> None:
    study = make_study()
    for _ in range(24):
        trial = ask(study)
        study.tell(trial, (product(trial.params), quality(trial.params)))
    best = max(study.best_trials, key=lambda trial: trial.values[1]).params
    assert (best["layers"], best["width"]) == (4, 64)
    assert best["dropout"] == pytest.approx(0.2)
    found = [trial.params["dropout"] for trial in study.best_trials]
    assert sum(abs(dropout - 0.2) < 0.05 for dropout in found) >= 0.8 * len(found)


def test_trials_that_are_asked_for_at_once_differ() -> None:
    study = make_study()
    for trial in [study.ask() for _ in range(5)]:
        for name, values in SPACE.items():
            trial._suggest(name, values)
        study.tell(trial, (product(trial.params), quality(trial.params)))
    asked = [study.ask() for _ in range(6)]
    params = [tuple(trial._suggest(n, d) for n, d in SPACE.items()) for trial in asked]
    assert len({*params, *(tuple(t.params.values()) for t in study.trials[:5])}) == 11


def test_limits_and_an_end() -> None:
    study = make_study(limit=4 * 32.0**2)
    for _ in range(50):  # 40 points are within the limit
        trial = ask(study)
        study.tell(trial, (product(trial.params), quality(trial.params)))
    params = [tuple(trial.params.values()) for trial in study.trials[:40]]
    assert len(set(params)) == 40
    assert all(layers * width**2 <= 4 * 32**2 for layers, width, _ in params)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_a_study_that_it_does_not_fit_is_refused(directions: list[str]) -> None:
    sampler = KnownCostSampler(product, SPACE)
    study = optuna.create_study(directions=directions, sampler=sampler)
    with pytest.raises(UsageError, match="first is the cost, minimised"):
        ask(study)


def test_a_parameter_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="'lr' has infinitely many values"):
        KnownCostSampler(product, {"lr": FloatDistribution(0.0, 1.0)})


def test_the_example() -> None:
    command = [sys.executable, "examples/known_cost_sampler.py"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    front = [line.split() for line in shown.splitlines()]
    assert len(front) >= 10
    assert float(front[0][0]) == 96.0 and float(front[-1][0]) == 1536.0
