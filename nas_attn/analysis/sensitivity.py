"""What single conversions cost, which plans they predict, and whether that holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_attn.engine.sensitivity import Measured, Prediction, PredictionCheck, UnitChange, Validity
from nas_attn.plan import AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT, RankAgreement, rank_agreement

TOLERANCES = (0.002, 0.01, 0.05, 0.2)
"""Changes of the loss, in bits a token, for which units' savings are stated."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trained trial made of a prediction.

    Args:
        trial: Number of the trial.
        plan: Plan of the trial.
        cost: Cost on the axis.
        predicted: Change of the loss by conversion, before any training, in bits a token.
        trained: Loss of the trial less the baseline's, both trained, in the study's measure.
        is_warm: Whether it started from the converted baseline.
    """

    trial: int
    plan: AttentionPlan
    cost: int
    predicted: float
    trained: float
    is_warm: bool


@dataclass(frozen=True, kw_only=True)
class SensitivityFindings:
    """All that was measured and predicted.

    Args:
        name: Name of the study.
        axis: Name of the cost.
        base_cost: Cost of the baseline.
        changes: Every single change that was measured.
        costs: Costs of the plans of those.
        measured: Changes of the loss that these plans made.
        front: Predicted front.
        checks: Plans that were predicted and measured.
        validity: Validity of the predictions by these checks; None with too few.
        chosen: Recommended plans of the front, spread over the axis.
        outcomes: Trained trials, with what was predicted of them.
        second: Name of a second cost that counts as much; None without one.
        surface: Plans that no other is predicted to dominate in both costs and the loss, their
            second cost the first of the further ones.
        is_same_measure: Whether their losses are of the measure that is predicted, bits a token; if
            not, only their order can be compared.
    """

    name: str
    axis: str
    base_cost: int
    changes: Sequence[UnitChange]
    costs: Mapping[AttentionPlan, int]
    measured: Mapping[AttentionPlan, Measured]
    front: Sequence[Prediction]
    checks: Sequence[PredictionCheck]
    validity: Validity | None
    chosen: Sequence[Prediction]
    outcomes: Sequence[Outcome] = ()
    second: str | None = None
    surface: Sequence[Prediction] = ()
    is_same_measure: bool = True

    @property
    def is_guide(self) -> bool:
        return self.validity is not None and self.validity.ranks.is_guide

    @property
    def verdict(self) -> str:
        """Whether the predictions may be followed, in a few sentences."""
        if self.validity is None:
            return "Too few plans were measured to say whether single changes add up."
        ranks, (ratio, low, high) = self.validity.ranks, self.validity.ratio
        text = f"Predicted and measured changes of {len(self.checks)} plans: {ranks}"
        if math.isfinite(ratio):
            text += f"; measured over predicted {ratio:.2f} (quartiles {low:.2f}, {high:.2f})"
        text += "."
        if self.validity.left is not None:
            square = f" + {self.validity.bend:.2f} x^2" if self.validity.bend else ""
            text += (
                f" Predictions x are corrected to {self.validity.scale:.2f} x{square}, which keeps "
                f"their order and leaves {self.validity.left:.0%} (median, of a plan that was left "
                "out)."
            )
        if not self.is_guide:
            text += " That is no guide: single changes do not add up here, so search by trials."
        return text

    def corrected(self, change: float) -> float:
        """What is to be measured after conversion where a change is predicted."""
        return change if self.validity is None else self.validity.corrected(change)

    @property
    def remaining(self) -> float | None:
        """The share of a (corrected) change that fine-tuning leaves: median of the warm trials;
        None with too few, or where losses are of another measure."""
        if not self.is_same_measure:
            return None
        warm = [(o.trained, self.corrected(o.predicted)) for o in self.outcomes if o.is_warm]
        shares = [trained / change for trained, change in warm if change > 0]
        return statistics.median(shares) if len(shares) >= LEAST_COUNT else None

    @property
    def trained_ranks(self) -> RankAgreement | None:
        """Whether trained trials come in the order that was predicted; None with too few."""
        if len(self.outcomes) < LEAST_COUNT:
            return None
        columns = ((o.cost, o.predicted, o.trained) for o in self.outcomes)
        return rank_agreement(*zip(*columns, strict=True))

    def savings(self) -> list[tuple[str, list[tuple[float, str]]]]:
        """For each unit and tolerance, the largest saving within it as a share of the whole cost,
        and by what."""
        rows = []
        for unit in dict.fromkeys(change.unit for change in self.changes):
            cells = []
            for tolerance in TOLERANCES:
                best = (0.0, "")
                for change in self.changes:
                    if change.unit == unit and self.measured[change.plan].change <= tolerance:
                        saved = (self.base_cost - self.costs[change.plan]) / self.base_cost
                        best = max(best, (saved, change.choice))
                cells.append(best)
            rows.append((unit, cells))
        return rows


def prediction_row(prediction: Prediction, findings: SensitivityFindings) -> dict[str, Any]:
    """A predicted point, corrected, and with what was measured if it was."""
    measured = {check.plan: check.measured for check in findings.checks}
    corrected, remaining = findings.corrected(prediction.change), findings.remaining
    return {
        "cost": prediction.cost,
        "cost_change": prediction.cost / findings.base_cost - 1,
        "predicted": prediction.change,
        "corrected": corrected,
        "error": prediction.error,
        "measured": measured.get(prediction.plan),
        "fine_tuned": None if remaining is None else remaining * corrected,
        "plan": prediction.plan.dumps(),
    }


def surface_row(prediction: Prediction, findings: SensitivityFindings) -> dict[str, Any]:
    """A predicted point over two costs."""
    row = prediction_row(prediction, findings)
    return {"cost": row.pop("cost"), "second_cost": prediction.others[0], **row}


def change_row(change: UnitChange, findings: SensitivityFindings) -> dict[str, Any]:
    """A single change as a row of the table of measurements."""
    measured = findings.measured[change.plan]
    return {
        "unit": change.unit,
        "choice": change.choice,
        "cost": findings.costs[change.plan],
        "cost_change": findings.costs[change.plan] / findings.base_cost - 1,
        "change": measured.change,
        "change_error": measured.error,
        "plan": change.plan.dumps(),
    }
