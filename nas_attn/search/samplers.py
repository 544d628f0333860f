"""How plans are proposed.

Parameters are known exactly before any training, so the first trials are spread evenly over that
axis; then a sampler of Optuna's takes over. "Stratified random" never lets it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas_attn.plan import AttentionPlan
from nas_attn.search.config import SearchConfig
from nas_attn.space import Alternative, Decision, SearchSpace

CANDIDATES = 4096
"""Random plans among which the one nearest to a wanted size is taken."""


class StratifiedProposer:
    """Proposes plans spread evenly over the range of parameters.

    Proposal t aims at the t-th point of a van der Corput sequence over the axis, ends included, and
    takes the nearest of many random plans, so any number of proposals covers the axis evenly.
    The same seed and index give the same plan.

    Args:
        space: what may be proposed.
        parameters: exact parameters of a plan.
        seed: of the random plans.
    """

    def __init__(
        self, space: SearchSpace, parameters: Callable[[AttentionPlan], int], seed: int
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
        self.low = self._base + sum(int(table.min()) for table in self._tables)
        self.high = self._base + sum(int(table.max()) for table in self._tables)

    def propose(self, index: int, taken: Container[str]) -> tuple[Alternative, ...] | None:
        """Propose a plan that is not taken.

        Args:
            index: number of the proposal, from 0.
            taken: canonical texts of the plans to leave out.

        Returns:
            An alternative for each unit; None if no free plan was found.
        """
        generator = np.random.default_rng([self.seed, index])
        picks = self._candidates(generator)
        added = np.stack([t[picks[:, u]] for u, t in enumerate(self._tables)])
        sizes = self._base + added.sum(axis=0)
        wanted = self.low + _spread(index) * (self.high - self.low)
        for candidate in np.argsort(np.abs(sizes - wanted), kind="stable"):
            chosen = tuple(
                unit.alternatives[pick]
                for unit, pick in zip(self.space.units, picks[candidate], strict=True)
            )
            if self.space.plan(chosen).dumps() not in taken:
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
        for unit, (count, table) in enumerate(zip(counts, self._tables, strict=True)):
            ranks = np.minimum((leaning[:, unit] * count).astype(np.int64), count - 1)
            drawn = np.minimum((even[:, unit] * count).astype(np.int64), count - 1)
            picks[:, unit] = np.concatenate([drawn, np.argsort(table, kind="stable")[ranks]])
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


class PlannedStartSampler(BaseSampler):
    """Another sampler, with the answers of some trials given beforehand.

    Args:
        inner: answers for all other trials.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner
        self._given: dict[int, Mapping[str, Any]] = {}
        self._next: Mapping[str, Any] | None = None

    def give_next(self, answers: Mapping[str, Any]) -> None:
        """The next trial that is asked gets these parameter values."""
        self._next = answers

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self._next is not None:
            self._given[trial.number], self._next = self._next, None
        else:
            self.inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if trial.number in self._given:
            return {}
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if trial.number in self._given:
            return {}
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if trial.number in self._given:
            return self._given[trial.number][param_name]
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._given.pop(trial.number, None)
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


def make_sampler(config: SearchConfig, trials_so_far: int) -> PlannedStartSampler:
    """The sampler a study names; its own random start is left to the stratified one.

    Args:
        config: names the sampler.
        trials_so_far: on record; a search that goes on must not repeat its first random numbers.
    """
    seed = config.seed + 7919 * trials_so_far
    inner: BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.sampler == "tpe":
            startup = max(1, config.startup_trials)
            inner = optuna.samplers.TPESampler(
                n_startup_trials=startup, multivariate=True, group=True, seed=seed
            )
        elif config.sampler == "nsga2":
            population = max(4, min(20, config.trials // 3))
            inner = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        elif config.sampler == "gp":
            startup = max(1, config.startup_trials)
            inner = optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
        else:
            inner = optuna.samplers.RandomSampler(seed=seed)
    return PlannedStartSampler(inner)


def answers_of(unit_decisions: Iterator[tuple[Decision, int]]) -> dict[str, Any]:
    """Decisions and picked indices as the Optuna parameters that `suggest` would set."""
    return {
        parameter_name(decision): index if decision.is_ordered else _label(decision, index)
        for decision, index in unit_decisions
    }


def suggest(trial: optuna.Trial, decision: Decision) -> int:
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


def parameter_name(decision: Decision) -> str:
    """Name of the Optuna parameter of a decision."""
    return f"{decision.name}.index" if decision.is_ordered else decision.name


def decisions_of(
    space: SearchSpace, chosen: tuple[Alternative, ...]
) -> Iterator[tuple[Decision, int]]:
    """The decisions, with indices, that lead to the chosen alternatives."""
    for unit, alternative in zip(space.units, chosen, strict=True):
        picks = dict(alternative.picks)
        index = picks[unit.scheme.name]
        yield unit.scheme, index
        for decision in unit.options[index]:
            yield decision, picks[decision.name]


def _label(decision: Decision, index: int) -> str:
    return str(decision.values[index])
