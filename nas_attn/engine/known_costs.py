"""Proposals of plans by `nas_attn.known_cost`: their first cost is known before training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nas_attn.engine.forecast import forecast_final
from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.engine.sensitivity import Measured, all_changes
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.known_cost.proposals import History, KnownCostProposer
from nas_attn.known_cost.spread import Floats, Picks
from nas_attn.known_cost.surrogate import Choice
from nas_attn.plan import AttentionPlan
from nas_attn.space import Option, SearchSpace, Unit

LEAST_LOSSES = 2
"""Losses without which nothing can be said of others."""
LEAST_CURVES = 3
"""Finished curves without which nothing is foretold of one that was stopped."""
FORETOLD = 3.0
"""Variance of a foretold loss, as a multiple of that of a loss that was reached."""


class KnownCostSearch:
    """Proposes plans by the losses of others and by what all cost.

    Args:
        spread: Sampler that spreads plans over the same cost, whose tables are used.
        maximise: Whether the metric of learning curves is better when higher.
        predicted: By how much single conversions of the trained baseline raise the loss, from
            `predicted_changes`; empty if that is not known.
    """

    def __init__(
        self,
        spread: StratifiedSampler,
        *,
        maximise: bool = False,
        predicted: Sequence[Sequence[float]] = (),
    ) -> None:
        self._sign = -1.0 if maximise else 1.0
        self.space = spread.space
        self._known: dict[AttentionPlan, tuple[int, ...] | None] = {}
        self._options = spread.options
        self._proposer = KnownCostProposer(
            choices_of(self.space, spread.tables, predicted), spread.base, spread.seed, spread.end
        )

    def propose(
        self,
        number: int,
        trained: Sequence[TrialRecord],
        stopped: Sequence[TrialRecord],
        running: Iterable[AttentionPlan],
        is_free: Callable[[AttentionPlan], bool],
    ) -> tuple[Option, ...] | None:
        """The next plan, an alternative for each unit.

        Args:
            number: Number of the trial that is to have it.
            trained: Trials whose loss is known.
            stopped: Trials that were stopped early.
            running: Plans in training.
            is_free: Function that says whether a plan may be proposed.

        Returns:
            None as long as too few losses are known, and where no plan is left.
        """
        history = self.history(trained, stopped, running)
        if len(history.losses) < LEAST_LOSSES:
            return None
        picks = self._proposer.propose(
            number, history, lambda picks: is_free(self.space.plan(self._options(picks)))
        )
        return None if picks is None else self._options(picks)

    def random_searches(
        self, trained: Sequence[TrialRecord], proposals: int, searches: int
    ) -> list[tuple[Floats, Floats]]:
        """Costs and losses that random proposals may have had, by what is known of the space.

        Args:
            trained: Trials whose loss is known.
            proposals: Proposals of each search.
            searches: Number of searches.

        Returns:
            None of them where too few losses are known.
        """
        history = self.history(trained, (), ())
        if len(history.losses) < LEAST_LOSSES:
            return []
        generator = np.random.default_rng(len(history.losses))
        surrogate = self._proposer.surrogate(history, generator)
        found = []
        for _ in range(searches):
            picks = [_random_picks(unit, proposals, generator) for unit in self.space.units]
            points = np.stack(picks, 1)
            found.append((self._proposer.costs(points), surrogate.draw(generator, points)))
        return found

    def history(
        self,
        trained: Sequence[TrialRecord],
        stopped: Sequence[TrialRecord],
        running: Iterable[AttentionPlan],
    ) -> History:
        """What is known, as far as it is of this space.

        Means of several seeds are less noisy; what was stopped counts by where it would have ended.
        """
        known = [(t.plan, t.point[0], 1.0 / max(1, len(t.losses))) for t in trained if t.point]
        known += [(trial.plan, self._foretold(trial, trained), FORETOLD) for trial in stopped]
        rows = [
            (picks, loss, noise)
            for plan, loss, noise in known
            if math.isfinite(loss) and plan is not None and (picks := self._picks(plan)) is not None
        ]
        waited = [picks for picks in map(self._picks, running) if picks is not None]
        units = len(self.space.units)
        return History(
            tried=np.array([picks for picks, _, _ in rows], np.int64).reshape(-1, units),
            losses=np.array([loss for _, loss, _ in rows], float),
            running=np.array(waited, np.int64).reshape(-1, units),
            noise=np.array([noise for _, _, noise in rows], float),
        )

    def _foretold(self, trial: TrialRecord, trained: Sequence[TrialRecord]) -> float:
        """Where a trial that was stopped would have ended, by the curves of others; nan where that
        is not known."""
        last = max(trial.curve, default=0)
        others = [t for t in trained if t.point and last in t.curve and len(t.curve) > 1]
        if len(others) < LEAST_CURVES or not last:
            return math.nan
        return forecast_final(
            [self._best(other, last) for other in others],
            [other.cost or 0 for other in others],
            [other.point[0] for other in others if other.point],
            loss=self._best(trial, last),
            cost=trial.cost or 0,
            coverage=0.5,
        ).expected

    def _best(self, trial: TrialRecord, last: int) -> float:
        return min(self._sign * loss for at, loss in trial.curve.items() if at <= last)

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


def choices_of(
    space: SearchSpace,
    tables: Sequence[npt.NDArray[Any]],
    predicted: Sequence[Sequence[float]] = (),
) -> list[list[Choice]]:
    """The alternatives of all units as the surrogate knows them: alike at alike sites, or where
    scheme and options are the same.

    Of what conversions predict the fourth roots count, for a change that ruins a trained model
    costs one that is trained with it much less.
    """
    changes = predicted or [[0.0] * len(unit.alternatives) for unit in space.units]
    return [
        [
            Choice(
                cost=float(cost),
                group=" ".join(unit.sites),
                label=" ".join(dict.fromkeys(str(choice) for _, choice in option.choices)),
                predicted=max(0.0, change) ** 0.25,
            )
            for option, cost, change in zip(unit.alternatives, costs, of_unit, strict=True)
        ]
        for unit, costs, of_unit in zip(space.units, tables, changes, strict=True)
    ]


def changes_to_keep(
    space: SearchSpace,
    measured_space: SearchSpace,
    baseline: AttentionPlan,
    expected: Mapping[AttentionPlan, Measured],
) -> dict[str, float]:
    """What is known of single changes, as `predicted_changes` takes it.

    Args:
        space: Space of the search.
        measured_space: The same with what votes on the trained baseline have decided.
        baseline: Plan that was changed.
        expected: Changes of the loss by single changes of that space.
    """
    changes = (all_changes(of, baseline) for of in (space, measured_space))
    return {
        space.as_offered(plan).digest: float(f"{expected[measured].change:.6g}")
        for (_, _, plan), (_, _, measured) in zip(*changes, strict=True)
        if measured in expected and measured != baseline
    }


def predicted_changes(
    space: SearchSpace, baseline: AttentionPlan, changes: Mapping[str, float]
) -> list[list[float]]:
    """What single conversions predict of the alternatives of all units.

    Args:
        space: Space of the search.
        baseline: Plan that was changed.
        changes: By how much the loss grew, by the digest of the changed plan, votes as they are on
            offer.

    Returns:
        Changes of each unit's alternatives; what could not be measured counts as much as the worst
        of its unit. Empty without any.
    """
    found: list[list[float]] = [[] for _ in space.units]
    for unit, _, plan in all_changes(space, baseline):
        known = 0.0 if plan == baseline else changes.get(space.as_offered(plan).digest, math.nan)
        found[unit].append(known)
    if not changes:
        return []
    worst = [max((c for c in of_unit if not math.isnan(c)), default=0.0) for of_unit in found]
    return [
        [most if math.isnan(change) else change for change in of_unit]
        for of_unit, most in zip(found, worst, strict=True)
    ]


def _random_picks(unit: Unit, count: int, generator: np.random.Generator) -> Picks:
    """Alternatives of a unit as a random sampler answers: a scheme, then each of its options."""
    schemes = [dict(option.picks)[unit.scheme.name] for option in unit.alternatives]
    shares = 1.0 / np.bincount(schemes)[schemes] / len(set(schemes))
    return generator.choice(len(schemes), count, p=shares / shares.sum())
