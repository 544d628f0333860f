"""How plans are proposed.

Parameters are known exactly before any training, so the first trials are spread evenly over that
axis; then a sampler of Optuna's takes over. "Stratified random" never lets it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler

from nas_attn.engine.config import SearchConfig
from nas_attn.plan import AttentionPlan
from nas_attn.space import Dimension, Option, SearchSpace

CANDIDATES = 4096
"""Random plans among which the one nearest to a wanted size is taken."""


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
        self._base = parameters(space.plan(first))
        self._tables = []
        for index, unit in enumerate(space.units):
            sizes = []
            for alternative in unit.alternatives:
                changed = [*first[:index], alternative, *first[index + 1 :]]
                sizes.append(parameters(space.plan(changed)) - self._base)
            self._tables.append(np.array(sizes))
        self._ascending = [np.argsort(table, kind="stable") for table in self._tables]
        self.low = self._base + sum(int(table.min()) for table in self._tables) + self._sight()
        self.high = self._base + sum(int(table.max()) for table in self._tables)
        self._end = self.high if most is None else max(self.low, min(self.high, most))

    def _sight(self) -> int:
        """What the smallest plan needs beyond the smallest choices to see the source."""
        dearer = []
        for unit, sizes in zip(self.space.units, self._tables, strict=True):
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
        generator = np.random.default_rng([self.seed, index])
        picks = self._candidates(generator)
        added = np.stack([t[picks[:, u]] for u, t in enumerate(self._tables)])
        sizes = self._base + added.sum(axis=0)
        wanted = self.low + _spread(index) * (self._end - self.low)
        for candidate in np.argsort(np.abs(sizes - wanted), kind="stable"):
            chosen = tuple(
                unit.alternatives[pick]
                for unit, pick in zip(self.space.units, picks[candidate], strict=True)
            )
            plan = self.space.plan(chosen)
            if plan.dumps() not in taken and allows(plan):
                return chosen
        return None

    def _candidates(self, generator: np.random.Generator) -> np.ndarray[Any, Any]:
        """Random plans as indices (candidates, units): all of a small space, else half drawn
        evenly and half leaning to small or large, which evenly drawn plans of many units never
        are."""
        counts = [len(table) for table in self._tables]
        if self.space.size <= CANDIDATES:
            every = np.indices(counts).reshape(len(counts), -1).T
            return generator.permutation(every)
        even = generator.random((CANDIDATES // 2, len(counts)))
        lean = generator.random((CANDIDATES // 2, 1))
        leaning = np.clip(lean + generator.normal(0.0, 0.2, (CANDIDATES // 2, len(counts))), 0, 1)
        picks = np.empty((CANDIDATES, len(counts)), dtype=np.int64)
        for unit, (count, order) in enumerate(zip(counts, self._ascending, strict=True)):
            ranks = np.minimum((leaning[:, unit] * count).astype(np.int64), count - 1)
            drawn = np.minimum((even[:, unit] * count).astype(np.int64), count - 1)
            picks[:, unit] = np.concatenate([drawn, order[ranks]])
        return picks


def _spread(index: int) -> float:
    """0, 1, then the van der Corput sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
    if index < 2:
        return float(index)
    value, weight, rest = 0.0, 0.5, index - 1
    while rest:
        value += weight * (rest & 1)
        weight, rest = weight / 2, rest >> 1
    return value


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
