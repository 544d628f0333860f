"""Predict the front of any PyTorch model whose attention is known, from the model alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nas_attn.analysis.predictions import PlanConstraints
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.engine.sensitivity import Prediction
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.measures import NO_LIMITS, Scores
from nas_attn.plan import AttentionPlan
from nas_attn.report.front_page import PredictedModel, write_front_page
from nas_attn.report.sensitivity import write_findings
from nas_attn.study.spaces import SpaceLike
from nas_attn.workflows.defaults import CHECKS, POINTS
from nas_attn.workflows.events import Events, LogEvents
from nas_attn.workflows.model_predictions import Loss, ModelPredictions


@dataclass(frozen=True, kw_only=True)
class ModelFront:
    """What was measured of a model, what follows, and the models of its plans.

    Args:
        findings: Changes, predicted front, checks and verdict.
        folder: Folder of tables, figures and the page; None if nothing was written.
        predictions: The model with its data, ready to be converted.
    """

    findings: SensitivityFindings
    folder: Path | None
    predictions: ModelPredictions

    @property
    def recommended(self) -> Sequence[Prediction]:
        """Plans of the front, from small to large, spread over the cost."""
        return self.findings.chosen

    @property
    def verdict(self) -> str:
        """Whether the predictions may be followed, in a few sentences."""
        return self.findings.verdict

    @property
    def page(self) -> Path | None:
        """The report's page; None if nothing was written."""
        return None if self.folder is None else self.folder / "index.html"

    def convert(self, plan: int | AttentionPlan, *, distil: bool | None = None) -> nn.Module:
        """A copy of the model, converted; the model itself stays as it is.

        Args:
            plan: Number of a recommended plan, from 0, or any plan.
            distil: Whether converted modules are trained alone; as they were measured if left out.

        Raises:
            UsageError: There is no such recommended plan.
            PlanError: The plan does not fit, or a scheme cannot inherit.
        """
        if isinstance(plan, int):
            if not -len(self.recommended) <= plan < len(self.recommended):
                raise UsageError(f"{len(self.recommended)} plans are recommended, from 0 on")
            plan = self.recommended[plan].plan
        return self.predictions.converted(plan, distil=distil)


def predict_model_front(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    space: SpaceLike = "inherited_per_layer",
    *,
    calibration: Iterable[Any] | None = None,
    cost: str = "attention",
    checks: int = CHECKS,
    points: int = POINTS,
    max_schemes: int | None = None,
    keep_first_layer: bool = False,
    limits: Mapping[str, float] = NO_LIMITS,
    second_cost: str | None = None,
    distil: bool = False,
    scores: Scores = "measured",
    folder: str | Path | None = None,
    name: str = "model",
    unit: str = "as the loss",
    events: Events | None = None,
) -> ModelFront:
    """Measure single conversions of a trained model, test what they predict, and find its front.

    Args:
        model: Trained model with attention that `convert_model` takes over; not changed.
        data: Batches of validation data, as `loss` takes them; they are read once and kept.
        loss: Function of a model and a batch that gives one loss for each example (N,). A mean
            does, too; then errors are of the batches, and there are no scores by gradients.
        space: Name of a shipped space, path of a file, or what such a file holds.
        calibration: Batches that conversions are fitted to, such as a few of the training data;
            the validation data if left out, which flatters all plans a little.
        cost: Name of the cost that plans are to save: `attention`, `non_embedding`, `total` or
            `effective` parameters, or `cache_bytes`.
        checks: Plans that test predictions, half of them random and half predicted; recommended
            plans are measured, too, unless it is 0.
        points: Plans that are recommended.
        max_schemes: Schemes in a plan at most; any number if None.
        keep_first_layer: Leave the first layer of each site as it is.
        limits: The most that plans may cost, by name, such as {"cache_bytes": 4096}.
        second_cost: Name of a cost that counts as much as the first: the plans that no other
            dominates in both and the loss are found, too.
        distil: Train converted modules alone before they are measured, so that every scheme
            inherits.
        scores: `measured`, a pass over the data for each single conversion; `gradient`, one pass
            with gradients for all and a few that say how much curvature counts; or `auto`, the same
            and then a twelfth are measured, those that decide what recommended plans lose.
        folder: Folder of tables, figures, the page, and of what was measured, which is not measured
            again. Nothing is written if left out.
        name: Name of the model, for the page.
        unit: Unit of the loss, such as `nats per token`, for the page.
        events: Object that is called with the progress; left out, it is logged at level INFO.

    Raises:
        PlanError: The model's attention cannot be converted.
        ConfigError: The space is refused, or does not fit the model.
        NasAttnError: Nothing can inherit, a loss is no number, or the folder is of another model.
        UsageError: There is no such cost, or there are no data.
    """
    if checks < 0 or points < 1:
        raise UsageError("ask for 0 checks or more, and for 1 point or more")
    constraints = PlanConstraints(max_schemes, keep_first_layer, limits, second_cost)
    batches = list(data)
    fitted = batches if calibration is None else list(calibration)
    if not batches or not fitted:
        raise UsageError("there are no data: give one batch at least")
    predictions = ModelPredictions(
        model,
        batches,
        loss,
        space,
        calibration=fitted,
        axis=cost,
        constraints=constraints,
        distil=distil,
        events=events or LogEvents(),
    )
    if folder is not None:
        predictions.keep_in(Path(folder))
    predictions.measure_singles(scores, points)
    predictions.measure(predictions.tests(checks, points), "tests of predictions")
    findings = predictions.findings(name, points, unit)
    if not findings.front:
        raise NasAttnError("no plan within these limits can inherit everywhere")
    if folder is not None:
        write_findings(findings, Path(folder))
        _write_page(predictions, findings, Path(folder))
    return ModelFront(
        findings=findings,
        folder=None if folder is None else Path(folder),
        predictions=predictions,
    )


def _write_page(predictions: ModelPredictions, findings: SensitivityFindings, folder: Path) -> None:
    shown = PredictedModel(
        shapes=predictions.shapes,
        loss=float(predictions.before.mean()),
        examples=len(predictions.before),
        distils=predictions.distils,
    )
    page = write_front_page(findings, shown, folder)
    predictions.events.on_message(f"report: {page}")
