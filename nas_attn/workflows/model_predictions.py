"""Measurements of one model's conversions over a space, and what they predict."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.analysis.predictions import PlanConstraints
from nas_attn.analysis.sensitivity import (
    SensitivityFindings,
    checks_of,
    decisive_changes,
    orders,
    plans_for_tests,
)
from nas_attn.attention.voting import holds_vote
from nas_attn.conversion import Conversions
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.scores import expected_changes
from nas_attn.engine.sensitivity import (
    AdditiveModel,
    Measured,
    Prediction,
    single_changes,
    spread_predictions,
    validity_of,
)
from nas_attn.engine.snapshot import Snapshot
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.measures import Scores
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT
from nas_attn.study.inheritance import inherits_everywhere
from nas_attn.study.spaces import SpaceLike, space_over
from nas_attn.workflows.defaults import LEAST_MEASURED, PART_MEASURED
from nas_attn.workflows.events import Events, Run
from nas_attn.workflows.kept_measurements import KeptMeasurements, identity
from nas_attn.workflows.model_costs import ModelCosts
from nas_attn.workflows.model_modules import ModuleMaker
from nas_attn.workflows.model_scores import curve_factor, probes_of, score_changes
from nas_attn.workflows.sensitivity import ROUNDS, SINGLE_CHANGES

Loss = Callable[[nn.Module, Any], Tensor | float]
"""The losses of a model on a batch: one for each example (N,), or one number."""

SEED = 1
"""Draws random plans."""
NO_LOSS = 1e-6
"""Largest loss of an example up to which the trained model loses nothing, and slopes are noise."""


class ModelPredictions:
    """What conversions of a model cost, and what that predicts.

    Args:
        model: Trained model; not changed.
        data: Batches of validation data.
        loss: Its losses on a batch.
        space: Space of the plans.
        calibration: Batches that conversions are fitted to.
        axis: Name of the cost that fronts are about.
        constraints: Constraints on the plans.
        distil: Whether converted modules are trained alone.
        events: Object that is called with the progress.

    Raises:
        PlanError: The model's attention cannot be converted.
        ConfigError: The space is refused, or does not fit.
        UsageError: A cost is not counted.
        NasAttnError: Nothing can inherit, or a loss is no number.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence[Any],
        loss: Loss,
        space: SpaceLike,
        *,
        calibration: Sequence[Any],
        axis: str,
        constraints: PlanConstraints,
        distil: bool,
        events: Events,
    ) -> None:
        self._data, self._loss, self.events = data, loss, events
        self.axis, self.constraints, self.distils = axis, constraints, distil
        self.conversions = Conversions(model, lambda m: [loss(m, batch) for batch in calibration])
        self.shapes = self.conversions.shapes
        self.space = space_over(space, self.shapes)
        if any(holds_vote(choice) for _, _, choice in self.space.choices()):
            raise NasAttnError("the space has votes on heads (keep), which studies alone hold")
        self.costs = ModelCosts(self.conversions)
        self.baseline = AttentionPlan.uniform(AttentionChoice.of("multi_head"), tuple(self.shapes))
        self._check_costs()
        self.changes = single_changes(
            self.space,
            self.baseline,
            lambda plan: inherits_everywhere(plan, self.shapes, distilled=distil),
        )
        if not self.changes:
            raise NasAttnError("no choice of the space can take over what the model has learned")
        self.kept = KeptMeasurements()
        self._model = model
        self.before = self._losses(self.baseline)
        self.maker = ModuleMaker(
            self.conversions, self._runs(calibration), has_slope=self._has_slope
        )

    def _check_costs(self) -> None:
        counted = self.costs(self.baseline)
        for name in (self.axis, *self.constraints.further):
            if name not in counted:
                raise UsageError(
                    f"{name} is no cost of this model that is counted; these are "
                    f"{', '.join(counted)}"
                )

    @property
    def _has_slope(self) -> bool:
        return bool(self.before.abs().max() > NO_LOSS)

    def keep_in(self, folder: Path) -> None:
        """Keep what is measured, and take what is there.

        Raises:
            NasAttnError: The folder cannot be used, or is of another model or other data.
        """
        calls = next(iter(self.conversions.calls.values()))
        of = identity(self._model, self.before, calls)
        how = "distilled" if self.distils else "measured"
        self.kept = KeptMeasurements.open(folder / f"{how}.jsonl", of)
        self.maker.keep(folder / "modules", str(of["weights"]))

    def measure_singles(self, scores: Scores, points: int) -> None:
        """Measure every single change, or score them and measure some (see `predict_front`).

        Raises:
            NasAttnError: The loss has no gradient that could say anything.
        """
        self.maker.begin(distil=self.distils)
        singles = list(dict.fromkeys(change.plan for change in self.changes))
        how = "measured" if scores == "measured" else "scored"
        self.events.on_message(
            f"{len(singles)} single changes of {len(self.space.units)} units are {how}"
        )
        if scores == "measured":
            self.measure(singles, SINGLE_CHANGES)
            return
        self._score(singles)
        probes = probes_of({plan: self.kept.scores[plan] for plan in singles})
        self.measure(probes, f"{SINGLE_CHANGES} beside scores")
        if scores == "auto":
            most = max(LEAST_MEASURED, math.ceil(PART_MEASURED * len(singles)))
            for _ in range(ROUNDS):
                model = self.model
                chosen = spread_predictions(self._front(model), points)
                decisive = decisive_changes(
                    model, chosen, self.kept.measured, math.ceil(most / ROUNDS)
                )
                self.measure(decisive, f"{SINGLE_CHANGES} that decide")

    def _score(self, plans: Sequence[AttentionPlan]) -> None:
        wanted = [plan for plan in plans if plan not in self.kept.scores]
        if not wanted:
            return
        if not self._has_slope:
            raise UsageError(
                "the trained model's loss is 0, so its gradients say nothing of what a conversion "
                "costs: take scores='measured'"
            )
        began = time.monotonic()
        self.events.on_message(f"scoring {len(wanted)} plans by gradients ...")
        for plan, score in score_changes(self.conversions, wanted, self._runs(self._data)).items():
            self.kept.add_score(plan, score)
        self.events.on_message(f"scored in {time.monotonic() - began:.0f} s")

    def measure(self, plans: Sequence[AttentionPlan], title: str) -> None:
        """Measure plans, as far as that was not done before."""
        wanted = [plan for plan in dict.fromkeys(plans) if plan not in self.kept.measured]
        if not wanted:
            return
        objectives = Objectives(metric="loss", maximise=False, costs=(self.axis,), limits={})
        run = Run(title=title, objectives=objectives, workers=1, is_search=False)
        with _told(self.events, run, len(wanted)) as on_measured:
            for plan in wanted:
                changes = self._losses(plan) - self.before
                count = len(changes)
                error = float(changes.std()) / math.sqrt(count) if count > 1 else math.nan
                self.kept.add(plan, Measured(float(changes.mean()), error))
                on_measured()

    def converted(self, plan: AttentionPlan, *, distil: bool | None = None) -> nn.Module:
        """A copy of the model, converted (see `ModelFront.convert`)."""
        self.maker.begin(distil=self.distils if distil is None else distil)
        made = copy.deepcopy(self.conversions.convert(plan))
        return made.train(self._model.training)

    def _losses(self, plan: AttentionPlan) -> Tensor:
        model = self.conversions.convert(plan).eval()
        with torch.no_grad():
            found = [self._loss(model, batch) for batch in self._data]
        losses = torch.cat(
            [torch.as_tensor(some).detach().cpu().double().flatten() for some in found]
        )
        if not len(losses) or not bool(losses.isfinite().all()):
            raise NasAttnError(f"the loss of {plan} is no number")
        return losses

    def _runs(self, batches: Sequence[Any]) -> list[Callable[[], Any]]:
        """For each batch, what runs the model as it stands and gives its losses."""
        return [partial(self._loss, self.conversions.model, batch) for batch in batches]

    @property
    def scores(self) -> dict[AttentionPlan, Measured]:
        """Changes of the loss by gradients, as far as there are any."""
        factor = curve_factor(self.kept.scores, self.kept.measured)
        return {plan: score.change(factor) for plan, score in self.kept.scores.items()}

    @property
    def model(self) -> AdditiveModel:
        """What is known of single changes, and predicts plans."""
        known = expected_changes(self.scores, self.kept.measured)
        has_cache = "cache_bytes" in self.costs(self.baseline)
        tie = "cache_bytes" if has_cache and self.axis != "cache_bytes" else None
        others = self.constraints.further
        return AdditiveModel(self.space, self.baseline, self.costs, self.axis, tie, known, others)

    def _front(self, model: AdditiveModel) -> list[Prediction]:
        wanted = self.constraints
        return model.front(
            max_schemes=wanted.max_schemes,
            keep_first_layer=wanted.keep_first_layer,
            limits=wanted.limits,
        )

    def _surface(self, model: AdditiveModel) -> list[Prediction]:
        wanted = self.constraints
        if wanted.second is None:
            return []
        return model.surface(
            max_schemes=wanted.max_schemes,
            keep_first_layer=wanted.keep_first_layer,
            limits=wanted.limits,
        )

    @cached_property
    def _alone(self) -> set[AttentionPlan]:
        """Plans that test nothing."""
        return {change.plan for change in self.changes} | {self.baseline}

    def tests(self, count: int, points: int) -> list[AttentionPlan]:
        """Plans that test predictions: half from the predicted front, half random, and what is
        recommended."""
        model = self.model
        front = self._front(model)
        plans = plans_for_tests(model, front, count, seed=SEED, alone=self._alone)
        if count:
            plans += [point.plan for point in spread_predictions(front, points)]
        return [plan for plan in dict.fromkeys(plans) if plan not in self._alone]

    def findings(self, name: str, points: int, unit: str) -> SensitivityFindings:
        """All that was measured, and what follows.

        Args:
            name: Name of the model.
            points: Plans that are recommended.
            unit: Unit of the loss.
        """
        model, measured, scores = self.model, self.kept.measured, self.scores
        front = self._front(model)
        tests = {
            plan: replace(seen, error=0.0) if math.isnan(seen.error) else seen
            for plan, seen in measured.items()
            if plan not in self._alone
        }
        checks = checks_of(model, tests, front, lambda plan: self.costs(plan)[self.axis])
        changes = [c for c in self.changes if c.plan in measured or c.plan in scores]
        return SensitivityFindings(
            name=name,
            axis=self.axis,
            base_cost=model.base_cost,
            changes=changes,
            costs={change.plan: self.costs(change.plan)[self.axis] for change in changes},
            measured=measured,
            scores=scores,
            orders=orders(checks, model.parts, {"loss": measured, "gradients": scores}),
            front=front,
            second=self.constraints.second,
            surface=self._surface(model),
            checks=checks,
            validity=validity_of(checks) if len(checks) >= LEAST_COUNT else None,
            chosen=spread_predictions(front, points),
            unit=unit,
        )


@contextmanager
def _told(events: Events, run: Run, count: int) -> Iterator[Callable[[], None]]:
    """Tell how measurements go on; yields what is called after each."""
    began, done = time.monotonic(), 0

    def snapshot() -> Snapshot:
        seconds = {False: (time.monotonic() - began) / done} if done else {}
        return Snapshot(budget=count, finished=done, mean_seconds=seconds)

    def on_measured() -> None:
        nonlocal done
        done += 1
        events.on_change(snapshot)

    events.on_start(run, snapshot)
    try:
        yield on_measured
    except BaseException:
        events.on_end(None)
        raise
    events.on_end(snapshot)
