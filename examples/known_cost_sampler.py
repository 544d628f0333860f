"""Plain Optuna: one objective is computed, the other is tried.

python examples/known_cost_sampler.py
"""

import optuna

import nas_attn

WIDTHS = optuna.distributions.CategoricalDistribution([16, 32, 64, 128, 256])
space = {f"layer_{number}": WIDTHS for number in range(6)}


def parameters(params: dict) -> float:
    return sum(params.values())


def objective(trial: optuna.Trial) -> tuple[float, float]:
    params = {name: trial.suggest_categorical(name, WIDTHS.choices) for name in space}
    loss = sum((number + 1) / width for number, width in enumerate(params.values()))
    return parameters(params), loss  # the loss stands for a training


sampler = nas_attn.KnownCostSampler(parameters, space, seed=1)
study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
study.optimize(objective, n_trials=30)
for trial in sorted(study.best_trials, key=lambda trial: trial.values):
    print(*trial.values, list(trial.params.values()))
