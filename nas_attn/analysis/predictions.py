"""Predictions of a sensitivity target: what is measured for them, and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

from nas_attn.analysis.sensitivity import (
    Improvement,
    Outcome,
    SensitivityFindings,
    checks_of,
    decisive_changes,
    measurements_of,
    orders,
    plans_for_tests,
)
from nas_attn.analysis.trials import Trials
from nas_attn.engine.decoding import DECODING, DecodingTable, decoding_table, keep_decoding_table
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.scores import expected_changes, scores_of, translation_scores
from nas_attn.engine.sensitivity import (
    AdditiveModel,
    Measured,
    Prediction,
    PredictionCheck,
    UnitChange,
    single_changes,
    spread_predictions,
    validity_of,
)
from nas_attn.engine.store import TrialStore
from nas_attn.engine.swaps import swaps
from nas_attn.engine.votes import votes_of
from nas_attn.errors import SearchError, UsageError
from nas_attn.fairseq_tools.costs import available_costs
from nas_attn.fairseq_tools.measure import (
    CHANGE,
    DIVERGENCE,
    DIVERGENCE_ERROR,
    ERROR,
    METRIC,
)
from nas_attn.measures import PredictedCost
from nas_attn.plan import AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT
from nas_attn.study.sensitivity import SensitivityTarget


@dataclass(frozen=True)
class PlanConstraints:
    """What plans a user wants.

    Args:
        max_schemes: Number of schemes in a plan at most; any number if None.
        keep_first_layer: The first layer of each site stays as it is.
        limits: The most that plans may cost, by name; the study's own hold as well.
        second: Name of a cost that counts as much as the axis: the plans that no other dominates in
            both and the loss are a surface.

    Raises:
        UsageError: No plan has so few schemes, or there is no such cost.
    """

    max_schemes: int | None = None
    keep_first_layer: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    second: str | None = None

    def __post_init__(self) -> None:
        if self.max_schemes is not None and self.max_schemes < 1:
            raise UsageError("a plan has one scheme at least")
        for name in self.further:
            if name not in get_args(PredictedCost):
                raise UsageError(
                    f"{name} is no cost that can be predicted; these are "
                    f"{', '.join(get_args(PredictedCost))}"
                )

    @property
    def further(self) -> list[str]:
        """Names of all costs beside the axis, the second first."""
        return list(dict.fromkeys([*([self.second] if self.second else []), *self.limits]))


NO_CONSTRAINTS = PlanConstraints()
NEARBY = 24
"""Plans next to a recommended one that are looked at."""
TRIED = "tried"
"""Under this name the record keeps the digests of plans that were measured next to the front."""


class Predictions:
    """What conversions of a trained baseline cost, and what that predicts.

    Args:
        target: Target with the space that is measured.
        searched: Record of the study, or of the checkpoint's run folder, with the votes that were
            held on the baseline.
        axis: Name of the cost that fronts are about; the target's first if left out.
        create: Whether the measurements' study is made if it is not there.

    Raises:
        SearchError: there is none and `create` is false, or the target does not count the cost.
    """

    def __init__(
        self,
        target: SensitivityTarget,
        searched: TrialStore,
        *,
        axis: str | None = None,
        create: bool = False,
    ) -> None:
        self.target = target.settled(votes_of(searched))
        self.searched = searched
        self.axis = axis or target.objectives.primary_cost
        objectives = Objectives(metric=METRIC, maximise=False, costs=("total",), limits={})
        name = measurements_of(searched.name, distils=target.distils)
        self.store = TrialStore(name, searched.storage, objectives, create=create)
        self.decoding: DecodingTable | None = decoding_table(self.store)
        if self.axis != DECODING:  # which may be timed later
            self.check_counted(self.axis)

    @cached_property
    def changes(self) -> list[UnitChange]:
        """Every single change that can be measured."""
        target = self.target
        return single_changes(target.space, target.baseline, target.inherits)

    def costs(self, plan: AttentionPlan) -> Mapping[str, int]:
        """What a plan costs, the time of decoding among it once its modules were timed."""
        known = self.target.costs.known(plan)
        if self.decoding is None:
            return known
        taken = self.decoding.microseconds(plan, self.target.baseline, self.target.costs.shapes)
        return known if taken is None else {**known, DECODING: taken}

    def keep_decoding(self, table: DecodingTable) -> None:
        """Go by this table from here on."""
        keep_decoding_table(self.store, table)
        self.decoding = table

    @property
    def left_out(self) -> int:
        """Choices that are the baseline's own, or cannot inherit."""
        return sum(len(unit.alternatives) for unit in self.target.space.units) - len(self.changes)

    def measured(self) -> dict[AttentionPlan, Measured]:
        """All that was measured so far, by plan."""
        return {
            trial.plan: Measured(trial.costs[CHANGE], trial.costs[ERROR])
            for trial in self.store.trials()
            if trial.plan is not None and trial.is_trained
        }

    def divergences(self) -> dict[AttentionPlan, Measured]:
        """How far predictions of converted models are from the trained one's, as far as it was
        measured."""
        return {
            trial.plan: Measured(trial.costs[DIVERGENCE], trial.costs[DIVERGENCE_ERROR])
            for trial in self.store.trials()
            if trial.plan is not None and trial.is_trained and DIVERGENCE in trial.costs
        }

    def scores(self) -> dict[AttentionPlan, Measured]:
        """What gradients said of single changes, those that were measured included."""
        known = scores_of(self.store)
        plans = (change.plan for change in self.changes)
        return {plan: known[plan.digest] for plan in plans if plan.digest in known}

    def model(self, constraints: PlanConstraints = NO_CONSTRAINTS) -> AdditiveModel:
        """What the single changes predict, for plans on the axis."""
        target = self.target
        has_cache = "cache_bytes" in available_costs(target.task)
        tie = "cache_bytes" if has_cache and self.axis != "cache_bytes" else None
        others = tuple(dict.fromkeys((*constraints.further, *target.objectives.limits)))
        return AdditiveModel(
            *(target.space, target.baseline, self.costs, self.axis, tie),
            expected_changes(self.scores(), self.measured()),
            others,
        )

    def _limits(self, constraints: PlanConstraints) -> dict[str, float]:
        """The target's limits and those of the constraints, of two the tighter."""
        limits = dict(self.target.objectives.limits)
        for name, most in constraints.limits.items():
            limits[name] = min(most, limits.get(name, most))
        return limits

    def check_counted(self, *names: str) -> None:
        """Refuse costs that the target does not count.

        Raises:
            SearchError: It does not count one of them.
        """
        counted = self.costs(self.target.baseline)
        for name in names:
            if name not in counted:
                raise SearchError(
                    f"the study does not count {name}; it has {', '.join(counted)} (flops once "
                    "they are among objectives.costs)"
                )

    def _front(self, model: AdditiveModel, constraints: PlanConstraints) -> list[Prediction]:
        """The plans within all limits that no other is predicted to dominate."""
        return model.front(
            max_schemes=constraints.max_schemes,
            keep_first_layer=constraints.keep_first_layer,
            limits=self._limits(constraints),
        )

    def _surface(self, model: AdditiveModel, constraints: PlanConstraints) -> list[Prediction]:
        """The same over the axis and the second cost; none without one."""
        if constraints.second is None:
            return []
        return model.surface(
            max_schemes=constraints.max_schemes,
            keep_first_layer=constraints.keep_first_layer,
            limits=self._limits(constraints),
        )

    def decisive(self, points: int, limits: PlanConstraints, count: int) -> list[AttentionPlan]:
        """Single changes that were only scored and that decide what recommended plans lose.

        Args:
            points: Plans that are recommended.
            limits: Constraints on the plans.
            count: Changes at most; those first that make up most of what plans are predicted to
                lose, each plan's loss counted alike.
        """
        model = self.model(limits)
        chosen = spread_predictions(self._front(model, limits), points)
        return decisive_changes(model, chosen, self.measured(), count)

    def nearby(self, points: int, limits: PlanConstraints) -> list[list[Prediction]]:
        """Each recommended point, and behind it plans next to it that cost no more."""
        model = self.model(limits)
        chosen = spread_predictions(self._front(model, limits), points)
        return [
            [
                point,
                *swaps(
                    model,
                    point,
                    NEARBY,
                    max_schemes=limits.max_schemes,
                    keep_first_layer=limits.keep_first_layer,
                    limits=self._limits(limits),
                ),
            ]
            for point in chosen
            if point.plan != self.target.baseline
        ]

    def tests(self, count: int, limits: PlanConstraints) -> list[AttentionPlan]:
        """Plans that test predictions: half from the predicted front, half random."""
        model = self.model(limits)
        alone = {change.plan for change in self.changes} | {self.target.baseline}
        front = self._front(model, limits)
        return plans_for_tests(model, front, count, seed=self.target.search.seed, alone=alone)

    def findings(
        self, limits: PlanConstraints = NO_CONSTRAINTS, points: int = 8
    ) -> SensitivityFindings:
        """All that was measured, and what follows.

        Args:
            limits: Limits of the plans on the front.
            points: Number of points that are recommended.
        """
        measured, model = self.measured(), self.model(limits)
        front, scores = self._front(model, limits), self.scores()
        changes = [c for c in self.changes if c.plan in measured or c.plan in scores]
        checks = self._checks(model, measured, front)
        divergences, bleu = self.divergences(), translation_scores(self.store)
        chosen = spread_predictions(front, points)
        return SensitivityFindings(
            name=self.searched.name,
            axis=self.axis,
            base_cost=model.base_cost,
            changes=changes,
            costs={change.plan: self._cost(change.plan) for change in changes},
            measured=measured,
            scores=scores,
            divergences=divergences,
            orders=orders(
                checks,
                model.parts,
                {"loss": measured, "divergence": divergences, "gradients": scores},
            ),
            front=front,
            second=limits.second,
            surface=self._surface(model, limits),
            checks=checks,
            validity=validity_of(checks) if len(checks) >= LEAST_COUNT else None,
            chosen=chosen,
            improvements=self._improvements(chosen, measured, limits),
            outcomes=self._outcomes(model, Trials(self.searched.trials(), self.target.objectives)),
            bleu={point.plan: bleu[d] for point in chosen if (d := point.plan.digest) in bleu},
            decoding=self._decoding_checks(chosen),
            base_bleu=bleu.get(self.target.baseline.digest),
            is_same_measure=self.target.is_same_metric,
        )

    def _decoding_checks(self, chosen: Sequence[Prediction]) -> list[tuple[float, float]]:
        """What decoding was expected to take, and took, of recommended plans that were timed."""
        table = self.decoding
        if table is None:
            return []
        timed = [p.plan for p in chosen if p.plan.digest in table.models]
        return [
            (float(self.costs(plan)[DECODING]), table.models[plan.digest])
            for plan in timed
            if plan != self.target.baseline
        ]

    @property
    def tried(self) -> set[str]:
        """Digests of the plans that were measured next to recommended ones."""
        return set(self.store.metadata().get(TRIED, ()))

    def keep_tried(self, plans: Iterable[AttentionPlan]) -> None:
        """Add plans to those."""
        self.store.set_metadata(TRIED, sorted(self.tried | {plan.digest for plan in plans}))

    def _improvements(
        self,
        chosen: Sequence[Prediction],
        measured: Mapping[AttentionPlan, Measured],
        constraints: PlanConstraints,
    ) -> list[Improvement]:
        """For each recommended point the best plan that was measured and costs no more, of those
        that the constraints allow."""
        if not self.tried:
            return []
        allowed = [plan for plan in measured if self._allows(plan, constraints)]
        costs = {plan: self._cost(plan) for plan in allowed}
        found = []
        for point in chosen:
            if point.plan in measured:
                within = [plan for plan, cost in costs.items() if cost <= point.cost]
                best = min(within, key=lambda plan: (measured[plan].change, plan != point.plan))
                found.append(
                    Improvement(
                        point=point,
                        measured=measured[point.plan],
                        plan=best,
                        cost=costs[best],
                        best=measured[best],
                    )
                )
        return found

    def _allows(self, plan: AttentionPlan, constraints: PlanConstraints) -> bool:
        """Whether a plan, measured under whatever constraints, is within these."""
        known = self.costs(plan)
        if self.axis not in known:  # its modules were not timed
            return False
        limits = self._limits(constraints)
        if any(known.get(name, math.inf) > most for name, most in limits.items()):
            return False
        schemes = {choice.scheme for _, choices in plan for choice in choices}
        if constraints.max_schemes is not None and len(schemes) > constraints.max_schemes:
            return False
        space, baseline = self.target.space, self.target.baseline
        firsts = [unit for unit in space.units if unit.layer == 0]
        return not constraints.keep_first_layer or all(
            plan.layers(site, count)[0] == baseline.layers(site, count)[0]
            for unit in firsts
            for site in unit.sites
            for count in (space.shapes[site].num_layers,)
        )

    def _checks(
        self,
        model: AdditiveModel,
        measured: Mapping[AttentionPlan, Measured],
        front: Sequence[Prediction],
    ) -> list[PredictionCheck]:
        alone = {change.plan for change in self.changes}
        on_front, tried = {point.plan for point in front}, self.tried
        # Plans next to recommended ones are no test: they were picked for what is measured.
        tests = {
            plan: seen
            for plan, seen in measured.items()
            if plan not in alone and (plan in on_front or plan.digest not in tried)
        }
        return checks_of(model, tests, front, self._cost)

    def _outcomes(self, model: AdditiveModel, trials: Trials) -> list[Outcome]:
        """The search's trials of which a prediction was made, the baseline left out."""
        baseline = trials.baseline
        if baseline is None or self.target.objectives.maximise:
            return []
        found = []
        for trial in trials.trained:
            if trial.plan is None or trial.is_baseline:
                continue
            predicted = model.predict(trial.plan)
            if predicted is not None:
                outcome = Outcome(
                    trial=trial.number,
                    plan=trial.plan,
                    cost=self._cost(trial.plan),
                    predicted=predicted.change,
                    trained=(trial.loss or 0.0) - (baseline.loss or 0.0),
                    is_warm=trial.is_warm and self.target.is_start,
                )
                found.append(outcome)
        return found

    def _cost(self, plan: AttentionPlan) -> int:
        return int(self.costs(plan)[self.axis])
