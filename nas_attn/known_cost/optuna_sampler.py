"""The sampler for any Optuna study of which the first objective is computed by a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_attn.errors import UsageError
from nas_attn.known_cost import STARTS
from nas_attn.known_cost.proposals import History, KnownCostProposer
from nas_attn.known_cost.spread import Floats, Picks
from nas_attn.known_cost.surrogate import Choice

PICKS = "known_cost:picks"
"""Attribute under which a trial keeps what was proposed, for others that begin meanwhile."""
MOST_VALUES = 1000
SAMPLES = 64
"""Random points at which it is seen whether costs add up over the parameters."""
TOLERANCE = 1e-9

CostFunction = Callable[[dict[str, Any]], float]


class KnownCostSampler(BaseSampler):
    """Proposes trials of a study that minimises a cost, computed by a function, and optimises one
    more objective, which needs the trial.

    The first trials are spread over the cost; then each is the one with the largest expected gain
    of hypervolume (see `nas_attn.known_cost.proposals`). Trials in parallel take each other into
    account. Parameters outside the search space are sampled at random.

    Args:
        cost: Function that gives the first objective of parameters, given by name.
        search_space: Distributions of the parameters, with finitely many values each, as
            `optuna.samplers.GridSampler` has them.
        n_startup_trials: Trials spread over the cost.
        seed: Seed of draws; None for any.
        limit: The most that a trial may cost; None for no limit.

    Raises:
        UsageError: A distribution has infinitely many values, or there is none.
    """

    def __init__(
        self,
        cost: CostFunction,
        search_space: Mapping[str, BaseDistribution],
        *,
        n_startup_trials: int = STARTS,
        seed: int | None = None,
        limit: float | None = None,
    ) -> None:
        if not search_space:
            raise UsageError("search_space is empty: name a parameter at least")
        self._space = dict(search_space)
        self._values = {name: values_of(name, d) for name, d in self._space.items()}
        self._n_startup_trials = n_startup_trials
        self._cost = cost
        self._kept: dict[tuple[int, ...], float] = {}
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
        self._random = RandomSampler(seed=seed)
        self._proposer = self._make_proposer(seed, limit)

    def _make_proposer(self, seed: int, limit: float | None) -> KnownCostProposer:
        counts = [len(values) for values in self._values.values()]
        first = [0] * len(counts)
        base = self._cost_of(first)
        units: list[list[Choice]] = []
        for unit, (name, values) in enumerate(self._values.items()):
            added = [
                self._cost_of([*first[:unit], i, *first[unit + 1 :]]) - base
                for i in range(len(values))
            ]
            places = _places(self._space[name], values)
            units.append(
                [
                    Choice(cost=c, group=name, label=f"{name} {value}", place=place)
                    for c, value, place in zip(added, values, places, strict=True)
                ]
            )
        generator = np.random.default_rng(seed)
        points = np.stack([generator.integers(0, count, SAMPLES) for count in counts], 1)
        proposer = KnownCostProposer(units, base, seed, limit)
        exact, summed = self._costs(points), proposer.costs(points)
        if np.allclose(exact, summed, rtol=TOLERANCE, atol=TOLERANCE * (abs(base) + 1.0)):
            return proposer
        return KnownCostProposer(units, base, seed, limit, self._costs)

    def _costs(self, picks: Picks) -> Floats:
        return np.array([self._cost_of(point) for point in picks.tolist()])

    def _cost_of(self, picks: Sequence[int]) -> float:
        key = tuple(picks)
        if key not in self._kept:
            self._kept[key] = float(self._cost(self._params(picks)))
        return self._kept[key]

    def _params(self, picks: Sequence[int]) -> dict[str, Any]:
        return {n: v[i] for (n, v), i in zip(self._values.items(), picks, strict=True)}

    def reseed_rng(self) -> None:
        """Draws hang on the number of a trial, so only what is sampled at random is seeded."""
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The search space that the sampler was given."""
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a trial.

        Raises:
            UsageError: The study has not two objectives, or does not minimise the first.
        """
        if len(study.directions) != 2 or study.directions[0] is not StudyDirection.MINIMIZE:
            raise UsageError(
                "KnownCostSampler needs a study of two objectives of which the first is the cost, "
                "minimised: create_study(directions=['minimize', ...])"
            )
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        proposed = [(t, self._picks(t)) for t in others]
        taken = {picks for _, picks in proposed if picks is not None}
        history = self._history(study.directions[1], proposed)
        picks = None
        if len(taken) >= self._n_startup_trials and len(history.losses) >= 2:
            picks = self._proposer.propose(trial.number, history, lambda p: p not in taken)
        picks = picks or self._proposer.spread.propose(len(taken), lambda p: p not in taken)
        if picks is None:  # everything has been tried
            return {}
        study._storage.set_trial_system_attr(trial._trial_id, PICKS, list(picks))
        return self._params(picks)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample a parameter outside the search space at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _history(
        self,
        direction: StudyDirection,
        proposed: Sequence[tuple[FrozenTrial, tuple[int, ...] | None]],
    ) -> History:
        sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
        done = [
            (picks, sign * t.values[1])
            for t, picks in proposed
            if picks is not None and t.state is TrialState.COMPLETE
        ]
        running = [
            picks for t, picks in proposed if picks is not None and t.state is TrialState.RUNNING
        ]
        width = len(self._values)
        return History(
            tried=np.array([picks for picks, _ in done], np.int64).reshape(-1, width),
            losses=np.array([loss for _, loss in done], float),
            running=np.array(running, np.int64).reshape(-1, width),
        )

    def _picks(self, trial: FrozenTrial) -> tuple[int, ...] | None:
        """What a trial has chosen; None if it is not known yet, or not of the search space."""
        if all(name in trial.params for name in self._values):
            try:
                return tuple(v.index(trial.params[n]) for n, v in self._values.items())
            except ValueError:
                return None
        kept = trial.system_attrs.get(PICKS)
        return None if kept is None else tuple(kept)


def values_of(name: str, distribution: BaseDistribution) -> list[Any]:
    """The values of a parameter.

    Raises:
        UsageError: There are infinitely many, or more than `MOST_VALUES`.
    """
    if isinstance(distribution, CategoricalDistribution):
        values = list(distribution.choices)
    elif isinstance(distribution, IntDistribution):
        values = list(range(distribution.low, distribution.high + 1, distribution.step))
    elif isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps = round((distribution.high - distribution.low) / distribution.step)
        values = [distribution.low + step * distribution.step for step in range(steps + 1)]
    else:
        raise UsageError(
            f"parameter {name!r} has infinitely many values: give its distribution a step, or "
            "take a CategoricalDistribution"
        )
    if len(values) > MOST_VALUES:
        raise UsageError(f"parameter {name!r} has more than {MOST_VALUES:,} values: use steps")
    return values


def _places(distribution: BaseDistribution, values: Sequence[Any]) -> list[float | None]:
    """Where numbers lie between the least and the largest; categories lie where they cost."""
    if isinstance(distribution, CategoricalDistribution) or len(values) == 1:
        return [None] * len(values)
    return [index / (len(values) - 1) for index in range(len(values))]
