"""Predict the front of any PyTorch model whose attention is known, from the model alone."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nas_attn.analysis.sensitivity import SensitivityFindings, checks_of, plans_for_tests
from nas_attn.attention.counting import count_plan
from nas_attn.attention.voting import holds_vote
from nas_attn.conversion import Conversions
from nas_attn.engine.sensitivity import (
    AdditiveModel,
    Measured,
    single_changes,
    spread_predictions,
    validity_of,
)
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT
from nas_attn.report.sensitivity import write_findings
from nas_attn.study.inheritance import inherits_everywhere
from nas_attn.study.spaces import space_over

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module], Tensor]
Run = Callable[[nn.Module], object]
AXIS = "attention"
SEED = 1
"""Draws random plans."""
MEASURED = "measured.jsonl"
"""Name of the file that measurements are kept in."""


def predict_model_front(
    model: nn.Module,
    loss: Loss,
    *,
    run: Run | None = None,
    space: str = "inherited_per_layer",
    checks: int = 40,
    points: int = 8,
    folder: str | Path | None = None,
    name: str = "model",
) -> SensitivityFindings:
    """Measure single conversions of a trained model, test what they predict, and find its front.

    As `predict_front` does of fairseq's models; nothing is trained. A recommended plan is had by
    `convert_model(model, plan, run)`.

    Args:
        model: Trained model, with attention that `convert_model` takes over; not changed.
        loss: Function that gives a model's losses on validation data: one for each example (N,),
            always in the same order, or their mean as a scalar, which leaves errors unknown.
        run: Function that runs a model on calibration data; `loss` itself if left out.
        space: Name of a shipped space, or path of a file.
        checks: Plans that test predictions, half of them random and half predicted.
        points: Plans that are recommended.
        folder: Folder of tables, figures and of what was measured, which is not measured again.
        name: Name of the model, in the summary.

    Raises:
        PlanError: The model's attention cannot be converted.
        ConfigError: The space is refused, or does not fit the model.
        NasAttnError: Nothing can inherit, a loss is no number, or the folder is of another model.
    """
    if checks < 0 or points < 1:
        raise UsageError("ask for 0 checks or more, and for 1 point or more")
    front = _ModelFront(Conversions(model, run or loss), loss, space, _Kept.of(folder, model))
    front.measure([change.plan for change in front.changes], "single changes")
    front.measure(front.tests(checks), "tests of predictions")
    findings = front.findings(name, points)
    if folder is not None:
        write_findings(findings, Path(folder))
    return findings


class _ModelFront:
    """Measurements of a model's conversions over a space, and what they predict.

    Args:
        conversions: The model.
        loss: Function that gives its losses.
        space: Name or file of the space.
        kept: What was measured before.

    Raises:
        ConfigError: The space is refused, or does not fit.
        NasAttnError: Nothing can inherit.
    """

    def __init__(self, conversions: Conversions, loss: Loss, space: str, kept: _Kept) -> None:
        self.conversions, self.loss, self.kept = conversions, loss, kept
        self.shapes = conversions.shapes
        self.space = space_over(space, self.shapes)
        if any(holds_vote(choice) for _, _, choice in self.space.choices()):
            raise NasAttnError(f"{space} has votes on heads (keep), which studies alone hold")
        self.baseline = AttentionPlan.uniform(AttentionChoice.of("multi_head"), tuple(self.shapes))
        self.changes = single_changes(
            self.space, self.baseline, lambda plan: inherits_everywhere(plan, self.shapes)
        )
        if not self.changes:
            raise NasAttnError("no choice of the space can take over what the model has learned")
        self.before = self._losses(self.baseline)

    def measure(self, plans: Sequence[AttentionPlan], title: str) -> None:
        """Measure plans, as far as that was not done before."""
        wanted = [plan for plan in dict.fromkeys(plans) if plan not in self.kept.measured]
        for number, plan in enumerate(wanted, start=1):
            changes = self._losses(plan) - self.before
            error = math.nan
            if len(changes) > 1:
                error = float(changes.std()) / math.sqrt(len(changes))
            measured = Measured(float(changes.mean()), error)
            self.kept.add(plan, measured)
            logger.info("%s, %d of %d: %+.4f", title, number, len(wanted), measured.change)

    def _losses(self, plan: AttentionPlan) -> Tensor:
        model = self.conversions.convert(plan)
        model.eval()
        with torch.no_grad():
            losses = torch.as_tensor(self.loss(model)).detach().cpu().double().flatten()
        if not len(losses) or not bool(losses.isfinite().all()):
            raise NasAttnError(f"the loss of {plan} is no number")
        return losses

    def costs(self, plan: AttentionPlan) -> Mapping[str, float]:
        """Parameters of the attention."""
        return {AXIS: count_plan(plan, self.shapes).parameters}

    @property
    def model(self) -> AdditiveModel:
        return AdditiveModel(self.space, self.baseline, self.costs, AXIS, None, self.kept.measured)

    def tests(self, count: int) -> list[AttentionPlan]:
        """Plans that test predictions: half from the predicted front, half random."""
        model = self.model
        alone = {change.plan for change in self.changes} | {self.baseline}
        return plans_for_tests(model, model.front(), count, seed=SEED, alone=alone)

    def findings(self, name: str, points: int) -> SensitivityFindings:
        """All that was measured, and what follows."""
        model, measured = self.model, self.kept.measured
        front = model.front()
        alone = {change.plan for change in self.changes}
        tests = {
            plan: replace(seen, error=0.0) if math.isnan(seen.error) else seen
            for plan, seen in measured.items()
            if plan not in alone
        }
        checks = checks_of(model, tests, front, lambda plan: int(self.costs(plan)[AXIS]))
        return SensitivityFindings(
            name=name,
            axis=AXIS,
            base_cost=model.base_cost,
            changes=self.changes,
            costs={change.plan: int(self.costs(change.plan)[AXIS]) for change in self.changes},
            measured=measured,
            front=front,
            checks=checks,
            validity=validity_of(checks) if len(checks) >= LEAST_COUNT else None,
            chosen=spread_predictions(front, points),
        )


@dataclass
class _Kept:
    """Measurements, kept in a file of a folder if there is one.

    Args:
        path: The file; None keeps nothing.
        measured: What was measured, by plan.
    """

    path: Path | None
    measured: dict[AttentionPlan, Measured] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: str | Path | None, model: nn.Module) -> _Kept:
        """What a folder holds of a model.

        Raises:
            NasAttnError: It cannot be read or written, or is of another model.
        """
        if folder is None:
            return cls(None)
        path, weights = Path(folder) / MEASURED, _digest(model)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                path.write_text(json.dumps({"weights": weights}) + "\n", encoding="utf-8")
            first, *lines = path.read_text(encoding="utf-8").splitlines()
            # A last line that was not written whole is measured again.
            whole = [json.loads(line) for line in lines if line.endswith("}")]
            is_other = json.loads(first)["weights"] != weights
            measured = {
                AttentionPlan.from_json(line["plan"]): Measured(line["change"], line["error"])
                for line in whole
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NasAttnError(f"{path} cannot be used: {error}") from None
        if is_other:
            raise NasAttnError(f"{path} holds measurements of a model with other weights")
        return cls(path, measured)

    def add(self, plan: AttentionPlan, measured: Measured) -> None:
        """Keep a measurement."""
        self.measured[plan] = measured
        if self.path is not None:
            line = {"plan": plan.to_json(), "change": measured.change, "error": measured.error}
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line))


def _digest(model: nn.Module) -> str:
    """Of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
