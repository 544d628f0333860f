"""How plans are proposed.

Parameters are known exactly before any training, so the first trials are spread evenly over that
axis; then a sampler of Optuna's takes over. "Stratified random" never lets it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler

from nas_attn.engine.config import SearchConfig
from nas_attn.known_cost.spread import CostSpread
from nas_attn.plan import AttentionPlan
from nas_attn.space import Dimension, Option, SearchSpace


class StratifiedSampler:
    """Proposes plans spread evenly over the range of parameters.

    Proposal t aims at the t-th point of a van der Corput sequence over the axis, ends included, and
    takes the nearest of many random plans, so any number of proposals covers the axis evenly.
    The same seed and index give the same plan.

    Args:
        space: Space of the plans that may be proposed.
        parameters: Exact parameters of a plan, or another cost that adds up over its modules.
        seed: Seed of the random plans.
        most: End of the axis, if not at the largest plan.
    """

    def __init__(
        self,
        space: SearchSpace,
        parameters: Callable[[AttentionPlan], float],
        seed: int,
        most: float | None = None,
    ) -> None:
        self.space = space
        self.seed = seed
        # Parameters add over units: a table replaces building a plan for every candidate.
        first = [unit.alternatives[0] for unit in space.units]
        self.base = parameters(space.plan(first))
        self.tables = []
        for index, unit in enumerate(space.units):
            sizes = []
            for alternative in unit.alternatives:
                changed = [*first[:index], alternative, *first[index + 1 :]]
                sizes.append(parameters(space.plan(changed)) - self.base)
            self.tables.append(np.array(sizes))
        self.low = self.base + sum(int(table.min()) for table in self.tables) + self._sight()
        self.high = self.base + sum(int(table.max()) for table in self.tables)
        self.end = self.high if most is None else max(self.low, min(self.high, most))
        self._spread = CostSpread(self.tables, self.base, seed, self.low, self.end)

    def _sight(self) -> int:
        """What the smallest plan needs beyond the smallest choices to see the source."""
        dearer = []
        for unit, sizes in zip(self.space.units, self.tables, strict=True):
            seeing = [s for s, o in zip(sizes, unit.alternatives, strict=True) if not o.is_blind]
            if "encoder_decoder" in unit.sites and seeing:
                dearer.append(int(min(seeing) - sizes.min()))
        return min(dearer, default=0)

    def propose(
        self,
        index: int,
        taken: Container[str],
        allows: Callable[[AttentionPlan], bool] = lambda plan: True,
    ) -> tuple[Option, ...] | None:
        """Propose a plan that is not taken.

        Args:
            index: Number of the proposal, from 0.
            taken: Canonical texts of the plans to leave out.
            allows: Whether a plan may be proposed.

        Returns:
            An alternative for each unit; None if no free plan was found.
        """

        def is_free(picks: tuple[int, ...]) -> bool:
            plan = self.space.plan(self.options(picks))
            return plan.dumps() not in taken and allows(plan)

        picks = self._spread.propose(index, is_free)
        return None if picks is None else self.options(picks)

    def options(self, picks: Sequence[int]) -> tuple[Option, ...]:
        """The alternatives of all units, given their indices."""
        return tuple(u.alternatives[pick] for u, pick in zip(self.space.units, picks, strict=True))


def make_sampler(config: SearchConfig, number: int) -> BaseSampler:
    """The sampler of one proposal; its own random start is left to the stratified proposer.

    It is made anew for each proposal and seeded by its number, so that what it proposes hangs on
    the history alone and not on when a search was interrupted.

    Args:
        config: Names the sampler.
        number: Number of the trial that is proposed.
    """
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    startup = max(1, config.startup_trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.sampler == "tpe":
            return optuna.samplers.TPESampler(
                n_startup_trials=startup, multivariate=True, group=True, seed=seed
            )
        if config.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=max(4, startup), seed=seed)
        if config.sampler == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def answers_of(
    space: SearchSpace, chosen: Iterable[Option]
) -> dict[str, tuple[Any, BaseDistribution]]:
    """The Optuna parameters, with their distributions, that `suggest` would set for a choice."""
    answers: dict[str, tuple[Any, BaseDistribution]] = {}
    for unit, alternative in zip(space.units, chosen, strict=True):
        picks = dict(alternative.picks)
        index = picks[unit.scheme.name]
        for decision in (unit.scheme, *unit.options[index]):
            distribution = _distribution(decision)
            if distribution is not None:
                pick = picks[decision.name]
                answer = pick if decision.is_ordered else _label(decision, pick)
                answers[parameter_name(decision)] = (answer, distribution)
    return answers


def suggest(trial: optuna.Trial, decision: Dimension) -> int:
    """Ask an Optuna trial for a decision.

    Ascending numbers are asked as their index, so that samplers know neighbours; anything else as a
    category.
    """
    name = parameter_name(decision)
    if len(decision.values) == 1:
        return 0
    if decision.is_ordered:
        return trial.suggest_int(name, 0, len(decision.values) - 1)
    labels = [_label(decision, index) for index in range(len(decision.values))]
    return labels.index(trial.suggest_categorical(name, labels))


def parameter_name(decision: Dimension) -> str:
    """Name of the Optuna parameter of a decision."""
    return f"{decision.name}.index" if decision.is_ordered else decision.name


def decisions_of(space: SearchSpace) -> dict[str, Dimension]:
    """All decisions of a space that leave a choice, by the names of their Optuna parameters."""
    decisions = (
        decision
        for unit in space.units
        for decision in (unit.scheme, *(d for options in unit.options for d in options))
    )
    return {
        parameter_name(decision): decision for decision in decisions if len(decision.values) > 1
    }


def distributions_of(decisions: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """The Optuna parameters of decisions, by name."""
    named = {name: _distribution(decision) for name, decision in decisions.items()}
    return {name: found for name, found in named.items() if found is not None}


def recorded_params(
    decisions: Mapping[str, Dimension], params: Mapping[str, tuple[Any, BaseDistribution]]
) -> dict[str, tuple[Any, BaseDistribution]]:
    """A sampler's parameters as the record has them.

    Of ascending numbers it holds the value and not the index that the sampler knows, so that
    Optuna's plots and its dashboard show a shared_dim of 32 and not 1.

    Args:
        decisions: Decisions by name, from `decisions_of`.
        params: Answers and distributions by name.
    """
    found: dict[str, tuple[Any, BaseDistribution]] = {}
    for name, answer in params.items():
        decision = decisions[name]
        if decision.is_ordered:
            value = decision.values[answer[0]]
            found[decision.name] = value, CategoricalDistribution(decision.values)
        else:
            found[name] = answer
    return found


def sampled_params(decisions: Mapping[str, Dimension], params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters on record as the sampler is shown them, in their order; `recorded_params` undone.

    Records of earlier versions hold indices already. What is no decision of the space is left out.

    Args:
        decisions: Decisions by name, from `decisions_of`.
        params: Parameters on record.
    """
    ordered = {d.name: (name, d.values) for name, d in decisions.items() if d.is_ordered}
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name in decisions:
            found[name] = value
        elif name in ordered and value in ordered[name][1]:
            sampled, values = ordered[name]
            found[sampled] = values.index(value)
    return found


def _distribution(decision: Dimension) -> BaseDistribution | None:
    if len(decision.values) == 1:
        return None
    if decision.is_ordered:
        return IntDistribution(0, len(decision.values) - 1)
    return CategoricalDistribution([_label(decision, i) for i in range(len(decision.values))])


def _label(decision: Dimension, index: int) -> str:
    return str(decision.values[index])
