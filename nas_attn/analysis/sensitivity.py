"""What single conversions cost, which plans they predict, and whether that holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nas_attn.engine.scores import expected_changes
from nas_attn.engine.sensitivity import (
    DRIFT,
    AdditiveModel,
    Measured,
    Prediction,
    PredictionCheck,
    UnitChange,
    Validity,
    spread_predictions,
)
from nas_attn.plan import AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT, RankAgreement, kendall, rank_agreement

TOLERANCES = (0.002, 0.01, 0.05, 0.2)
"""Changes of the loss, in bits per token, for which units' savings are stated."""


NEARLY = 0.9
"""Kendall's tau from which an order is nearly the same."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trained trial made of a prediction.

    Args:
        trial: Number of the trial.
        plan: Plan of the trial.
        cost: Cost on the axis.
        predicted: Change of the loss by conversion, before any training, in bits per token.
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
class Improvement:
    """A recommended point, and the best plan that was measured and costs no more.

    Args:
        point: Point of the predicted front.
        measured: Change of the loss of its plan, measured.
        plan: Best plan; the point's own if none was better.
        cost: Cost of that on the axis.
        best: Change of the loss of that, measured.
    """

    point: Prediction
    measured: Measured
    plan: AttentionPlan
    cost: int
    best: Measured


@dataclass(frozen=True, kw_only=True)
class SensitivityFindings:
    """All that was measured and predicted.

    Args:
        name: Name of the study.
        axis: Name of the cost.
        base_cost: Cost of the baseline.
        changes: Every single change that was measured or scored.
        costs: Costs of the plans of those.
        measured: Changes of the loss that were measured, of plans of any kind.
        front: Predicted front.
        checks: Plans that were predicted and measured.
        validity: Validity of the predictions by these checks; None with too few.
        chosen: Recommended plans of the front, spread over the axis.
        outcomes: Trained trials, with what was predicted of them.
        second: Name of a second cost that counts as much; None without one.
        surface: Plans that no other is predicted to dominate in both costs and the loss, their
            second cost the first of the further ones.
        improvements: Recommended points with what was found next to them; empty if nothing was
            looked for.
        scores: Changes of the loss by gradients, of single changes; empty without such scores.
        divergences: How far predictions of converted models are from the trained one's, in bits a
            token, as far as it was measured.
        orders: Kendall's tau of sums of single changes and of what was measured of whole plans, by
            what the sums are of.
        bleu: BLEU of recommended plans on the validation set, nothing trained; empty if nothing
            was translated.
        decoding: Microseconds a sentence that decoding takes recommended plans, by the table and
            measured; empty if none was timed.
        base_bleu: BLEU of the baseline; None if nothing was translated.
        unit: Unit of the loss, for tables and figures.
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
    improvements: Sequence[Improvement] = ()
    scores: Mapping[AttentionPlan, Measured] = field(default_factory=dict)
    divergences: Mapping[AttentionPlan, Measured] = field(default_factory=dict)
    orders: Mapping[str, float] = field(default_factory=dict)
    bleu: Mapping[AttentionPlan, float] = field(default_factory=dict)
    decoding: Sequence[tuple[float, float]] = ()
    base_bleu: float | None = None
    unit: str = "bits per token"
    is_same_measure: bool = True

    @cached_property
    def expected(self) -> Mapping[AttentionPlan, Measured]:
        """Measured changes, and of what was only scored what scores let expect."""
        return expected_changes(self.scores, self.measured)

    @property
    def is_guide(self) -> bool:
        return self.validity is not None and self.validity.ranks.is_guide

    @property
    def gist(self) -> str:
        """The verdict in plain words, to begin with; empty where too few plans were measured."""
        if self.validity is None:
            return ""
        if not self.is_guide:
            return "Predictions did not order plans as measurements did."
        nearly = self.validity.ranks.overall >= NEARLY
        text = f"Predictions ordered plans {'nearly' if nearly else 'mostly'} as measurements did"
        if self.validity.left is not None:
            return f"{text}; their typical error is {self.validity.left:.0%} of the change."
        if math.isfinite(self.validity.ratio[0]):
            return f"{text}; their typical error is at most {DRIFT:.0%} of the change."
        return f"{text}."

    @property
    def verdict(self) -> str:
        """Whether the predictions may be followed, in a few sentences."""
        if self.validity is None:
            return "Too few plans were measured to say whether single changes add up."
        ranks, (ratio, low, high) = self.validity.ranks, self.validity.ratio
        text = f"Predicted and measured changes of {len(self.checks)} plans: {ranks}"
        if math.isfinite(ratio):
            text += f"; measured over predicted {ratio:.2f} (quartiles {low:.2f}, {high:.2f})"
            text += self._kinds_text()
        text += "."
        if self.validity.left is not None:
            square = f" + {self.validity.bend:.2f} x^2" if self.validity.bend else ""
            text += (
                f" Predictions x are corrected to {self.validity.scale:.2f} x{square}, which keeps "
                f"their order; median leave-one-out error {self.validity.left:.0%}."
            )
        if self.scores:
            text += f" {self._scores_text()}"
        if len(self.orders) > 1:
            each = ", ".join(f"{name} {tau:.2f}" for name, tau in self.orders.items())
            text += f" By sums of each alone, tau is: {each}."
        if not self.is_guide:
            text += " That is no guide: single changes do not add up here, so search by trials."
        return text

    @property
    def improvement_text(self) -> str:
        """How much was lost by going by sums, as far as plans next to the front were measured."""
        better = [one for one in self.improvements if one.plan != one.point.plan]
        text = f"{len(better)} of {len(self.improvements)} recommended plans were bettered"
        if better:
            gains = [one.measured.change - one.best.change for one in better]
            text += f", by {statistics.median(gains):.4f} bits per token (median)"
        return f"{text}."

    @property
    def decoding_text(self) -> str:
        """Whether whole models take what the table of modules says; empty if none was timed."""
        if not self.decoding:
            return ""
        ratios = [measured / expected for expected, measured in self.decoding]
        text = f"Decoding of {len(ratios)} recommended plans takes {statistics.median(ratios):.2f}"
        if len(ratios) > 1:
            text += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        return f"{text} of what their modules let expect."

    @property
    def bleu_text(self) -> str:
        """Whether recommended plans that lose more also translate worse; empty if nothing was
        translated."""
        if self.base_bleu is None:
            return ""
        text = f"The trained model translates the validation set with BLEU {self.base_bleu:.2f}"
        known = [point for point in self.chosen if point.plan in self.bleu]
        if len(known) >= LEAST_COUNT:
            tau = kendall(
                [-self.corrected(point.change) for point in known],
                [self.bleu[point.plan] for point in known],
            )
            text += f"; of {len(known)} plans, predicted loss and BLEU agree with tau {tau:.2f}"
        return f"{text}."

    def _kinds_text(self) -> str:
        """The same ratio of plans that were picked and of random ones: what was picked for a low
        prediction may have been lucky."""
        medians = []
        for kind, words in (("predicted", "plans of the front"), ("random", "random plans")):
            clear = [
                check.measured / check.predicted
                for check in self.checks
                if check.kind == kind and check.predicted > max(0.0, 2 * check.error)
            ]
            if len(clear) < LEAST_COUNT:
                return ""
            medians.append(f"{words} {statistics.median(clear):.2f}")
        return f", {', '.join(medians)}"

    def _scores_text(self) -> str:
        """How many single changes were only scored, and how scores compare with measurements."""
        both = [change.plan for change in self.changes if change.plan in self.scores]
        both = [plan for plan in both if plan in self.measured]
        text = f"{len(self.scores)} single changes were scored by gradients, {len(both)} measured"
        if len(both) >= LEAST_COUNT:
            tau = kendall(
                [self.scores[plan].change for plan in both],
                [self.measured[plan].change for plan in both],
            )
            text += f"; of those scores and measurements agree with tau {tau:.2f}"
        return f"{text}."

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
                    if change.unit == unit and self.expected[change.plan].change <= tolerance:
                        saved = (self.base_cost - self.costs[change.plan]) / self.base_cost
                        best = max(best, (saved, change.choice))
                cells.append(best)
            rows.append((unit, cells))
        return rows


def plans_for_tests(
    model: AdditiveModel,
    front: Sequence[Prediction],
    count: int,
    *,
    seed: int,
    alone: Collection[AttentionPlan],
) -> list[AttentionPlan]:
    """Plans that test predictions: half from the predicted front, half random.

    Args:
        model: What single changes predict.
        front: Predicted front.
        count: Number of plans.
        seed: Seed of the random ones.
        alone: Plans that test nothing: the baseline, and single changes of it.
    """
    plans = [point.plan for point in spread_predictions(front, count - count // 2)]
    plans += model.random_plans(count // 2, seed)
    return [plan for plan in dict.fromkeys(plans) if plan not in alone]


def measurements_of(study: str, *, distils: bool) -> str:
    """Name of the study that holds the measurements of another one's baseline.

    Args:
        study: Name of the other one.
        distils: Whether converted modules are trained alone before they are measured.
    """
    # Names of studies hold no spaces, so this can be no other study's.
    return f"{study} ({'sensitivity, distilled' if distils else 'sensitivity'})"


def decisive_changes(
    model: AdditiveModel,
    chosen: Sequence[Prediction],
    measured: Collection[AttentionPlan],
    count: int,
) -> list[AttentionPlan]:
    """Single changes that were only scored and that decide what recommended plans lose.

    Args:
        model: What single changes predict.
        chosen: Recommended plans.
        measured: Plans that were measured.
        count: Changes at most; those first that make up most of what plans are predicted to lose,
            each plan's loss counted alike.
    """
    weights: dict[AttentionPlan, float] = {}
    for point in chosen:
        for part in model.parts(point.plan):
            if part not in measured and point.change:
                share = abs(model.changes[part].change / point.change)
                weights[part] = weights.get(part, 0.0) + share
    return sorted(weights, key=lambda part: -weights[part])[:count]


def checks_of(
    model: AdditiveModel,
    measured: Mapping[AttentionPlan, Measured],
    front: Sequence[Prediction],
    cost: Callable[[AttentionPlan], int],
) -> list[PredictionCheck]:
    """What was predicted and measured of plans.

    Args:
        model: What single changes predict.
        measured: Plans that were measured to test that.
        front: Predicted front.
        cost: Function that gives a plan's cost on the axis.
    """
    on_front = {point.plan for point in front}
    found = []
    for plan, seen in measured.items():
        predicted = model.predict(plan)
        if predicted is not None:
            check = PredictionCheck(
                plan=plan,
                cost=cost(plan),
                kind="predicted" if plan in on_front else "random",
                predicted=predicted.change,
                measured=seen.change,
                error=seen.error,
            )
            found.append(check)
    return found


def orders(
    checks: Sequence[PredictionCheck],
    parts: Callable[[AttentionPlan], Sequence[AttentionPlan]],
    measures: Mapping[str, Mapping[AttentionPlan, Measured]],
) -> dict[str, float]:
    """How well sums of several measures order what was measured of whole plans.

    Args:
        checks: Plans whose loss was predicted and measured.
        parts: Function that names the single changes of a plan.
        measures: What is known of single changes, by the name of the measure; one that does not
            know all that these plans consist of is left out.
    """
    parts_of = [parts(check.plan) for check in checks]
    found = {}
    for name, known in measures.items():
        if len(checks) >= LEAST_COUNT and all(part in known for some in parts_of for part in some):
            sums = [math.fsum(known[part].change for part in some) for some in parts_of]
            found[name] = kendall(sums, [check.measured for check in checks])
    return found


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
        **({"bleu": findings.bleu.get(prediction.plan)} if findings.bleu else {}),
        "plan": prediction.plan.dumps(),
    }


def improvement_row(improvement: Improvement) -> dict[str, Any]:
    """A recommended point and the best plan that was measured next to it."""
    return {
        "cost": improvement.point.cost,
        "measured": improvement.measured.change,
        "plan": improvement.point.plan.dumps(),
        "best_cost": improvement.cost,
        "best_measured": improvement.best.change,
        "best_plan": improvement.plan.dumps(),
    }


def surface_row(prediction: Prediction, findings: SensitivityFindings) -> dict[str, Any]:
    """A predicted point over two costs."""
    row = prediction_row(prediction, findings)
    return {"cost": row.pop("cost"), "second_cost": prediction.others[0], **row}


def change_row(change: UnitChange, findings: SensitivityFindings) -> dict[str, Any]:
    """A single change as a row of the table of measurements."""
    expected = findings.expected[change.plan]
    score = findings.scores.get(change.plan)
    divergence = findings.divergences.get(change.plan)
    return {
        "unit": change.unit,
        "choice": change.choice,
        "cost": findings.costs[change.plan],
        "cost_change": findings.costs[change.plan] / findings.base_cost - 1,
        "change": expected.change,
        "change_error": expected.error,
        "divergence": None if divergence is None else divergence.change,
        "divergence_error": None if divergence is None else divergence.error,
        "by": "measured" if change.plan in findings.measured else "gradient",
        "score": None if score is None else score.change,
        "plan": change.plan.dumps(),
    }
