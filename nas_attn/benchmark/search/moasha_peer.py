"""Multi-objective asynchronous successive halving (MO-ASHA) of Syne Tune, on the plans of a table.

Plans are drawn at random. At rungs, 1, 3, 9, ... validations, a trial goes on if it is among the
best third of those that came so far, by non-dominated sorting of loss and costs (Salinas et al.
2021; Schmucker et al. 2021, arXiv 2106.12639).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_attn.benchmark.search.table import SearchTable

LOSS = "loss"
VALIDATIONS = "validations"


@dataclass
class _Category:
    """A domain of Syne Tune's whose draws have a seed of their own."""

    count: int
    random: np.random.Generator

    def sample(self) -> int:
        return int(self.random.integers(self.count))


class MoashaPeer:
    """Draws plans, and stops them at rungs.

    Args:
        table: The table.
        seed: Seed of the draws.
    """

    def __init__(self, table: SearchTable, seed: int) -> None:
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        self.table = table
        self.units = {str(n): unit.alternatives for n, unit in enumerate(table.space.units)}
        random = np.random.default_rng(seed)
        self.costs = [f"cost_{n}" for n in range(len(table.objectives.costs))]
        longest = max(len(table.curves[text, table.seed].points) for text in table.plans)
        self.scheduler = MOASHA(
            {name: _Category(len(options), random) for name, options in self.units.items()},
            metrics=[LOSS, *self.costs],
            time_attr=VALIDATIONS,
            max_t=longest,
            random_seed=seed,
        )
        self.trials: dict[str, Any] = {}

    def ask(self) -> str:
        """The text of the next plan; drawn again where the table lacks it."""
        while True:
            drawn = self.scheduler.suggest().config
            text = self.table.space.plan([self.units[n][drawn[n]] for n in self.units]).dumps()
            if text in self.table.plans:
                return text

    def goes_on(self, plan: str, validations: int, loss: float, costs: Sequence[float]) -> bool:
        """Whether a trial is trained further after so many validations."""
        trial = self.trials.get(plan) or self._add(plan)
        result = dict(zip(self.costs, costs, strict=True))
        said = self.scheduler.on_trial_result(
            trial, {VALIDATIONS: validations, LOSS: loss, **result}
        )
        return bool(said == "CONTINUE")

    def tell(self, plan: str, loss: float, costs: Sequence[float]) -> None:
        """Nothing is learned of a plan but at rungs."""

    def _add(self, plan: str) -> Any:
        from datetime import datetime

        from syne_tune.backend.trial_status import Trial

        trial = Trial(len(self.trials), {}, datetime(2026, 1, 1))
        self.scheduler.on_trial_add(trial)
        self.trials[plan] = trial
        return trial
