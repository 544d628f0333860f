"""Proposals of plans by `nas_attn.known_cost`: their first cost is known before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.known_cost.proposals import History, KnownCostProposer
from nas_attn.known_cost.spread import Floats, Picks
from nas_attn.known_cost.surrogate import Choice
from nas_attn.plan import AttentionPlan
from nas_attn.space import Option, SearchSpace, Unit

LEAST_LOSSES = 2
"""Losses without which nothing can be said of others."""


class KnownCostSearch:
    """Proposes plans by the losses of others and by what all cost.

    Args:
        spread: Sampler that spreads plans over the same cost, whose tables are used.
    """

    def __init__(self, spread: StratifiedSampler) -> None:
        self.space = spread.space
        self._known: dict[AttentionPlan, tuple[int, ...] | None] = {}
        self._options = spread.options
        self._proposer = KnownCostProposer(
            choices_of(self.space, spread.tables), spread.base, spread.seed, spread.end
        )

    def propose(
        self,
        number: int,
        trained: Sequence[TrialRecord],
        running: Iterable[AttentionPlan],
        is_free: Callable[[AttentionPlan], bool],
    ) -> tuple[Option, ...] | None:
        """The next plan, an alternative for each unit.

        Args:
            number: Number of the trial that is to have it.
            trained: Trials whose loss is known.
            running: Plans in training.
            is_free: Function that says whether a plan may be proposed.

        Returns:
            None as long as too few losses are known, and where no plan is left.
        """
        history = self.history(trained, running)
        if len(history.losses) < LEAST_LOSSES:
            return None
        picks = self._proposer.propose(
            number, history, lambda picks: is_free(self.space.plan(self._options(picks)))
        )
        return None if picks is None else self._options(picks)

    def random_reach(
        self, trained: Sequence[TrialRecord], count: int, generator: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Costs and losses that random proposals may have had, by what is known of the space.

        Args:
            trained: Trials whose loss is known, two at least.
            count: Number of proposals.
            generator: Generator of the proposals and of their losses.
        """
        surrogate = self._proposer.surrogate(self.history(trained, ()), generator)
        picks = np.stack([_random_picks(u, count, generator) for u in self.space.units], 1)
        return self._proposer.costs(picks), surrogate.draw(generator, picks)

    def history(self, trained: Sequence[TrialRecord], running: Iterable[AttentionPlan]) -> History:
        """What is known, as far as it is of this space. Means of several seeds are less noisy."""
        known = [(self._picks(t.plan), t) for t in trained if t.plan is not None and t.point]
        known = [(picks, trial) for picks, trial in known if picks is not None]
        waited = [picks for picks in map(self._picks, running) if picks is not None]
        units = len(self.space.units)
        return History(
            tried=np.array([picks for picks, _ in known], np.int64).reshape(-1, units),
            losses=np.array([trial.point[0] for _, trial in known if trial.point], float),
            running=np.array(waited, np.int64).reshape(-1, units),
            noise=np.array([1.0 / max(1, len(trial.losses)) for _, trial in known]),
        )

    def _picks(self, plan: AttentionPlan) -> tuple[int, ...] | None:
        if plan not in self._known:
            options = self.space.encode(plan)
            self._known[plan] = (
                None
                if options is None
                else tuple(
                    unit.alternatives.index(option)
                    for unit, option in zip(self.space.units, options, strict=True)
                )
            )
        return self._known[plan]


def choices_of(space: SearchSpace, tables: Sequence[npt.NDArray[Any]]) -> list[list[Choice]]:
    """The alternatives of all units as the surrogate knows them: alike at alike sites, or where
    scheme and options are the same."""
    return [
        [
            Choice(
                cost=float(cost),
                group=" ".join(unit.sites),
                label=" ".join(dict.fromkeys(str(choice) for _, choice in option.choices)),
            )
            for option, cost in zip(unit.alternatives, costs, strict=True)
        ]
        for unit, costs in zip(space.units, tables, strict=True)
    ]


def _random_picks(unit: Unit, count: int, generator: np.random.Generator) -> Picks:
    """Alternatives of a unit as a random sampler answers: a scheme, then each of its options."""
    schemes = [dict(option.picks)[unit.scheme.name] for option in unit.alternatives]
    shares = 1.0 / np.bincount(schemes)[schemes] / len(set(schemes))
    return generator.choice(len(schemes), count, p=shares / shares.sum())
