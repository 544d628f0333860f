"""What single conversions cost, which plans they predict, and whether that holds: as files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_attn.plan import AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT, RankAgreement, rank_agreement
from nas_attn.report.figures import save_figure
from nas_attn.report.tables import write_rows
from nas_attn.search.sensitivity import Change, Check, Measured, Prediction, Validity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCES = (0.002, 0.01, 0.05, 0.2)
"""Changes of the loss, in bits a token, for which units' savings are told."""
SHOWN = (1e-3, 3.0)
"""The least and the largest change that colours of the heat map tell apart."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trained trial made of a prediction.

    Args:
        trial: its number.
        plan: of the trial.
        cost: on the axis.
        predicted: change of the loss by conversion, before any training, in bits a token.
        trained: its loss less the baseline's, both trained, in the study's measure.
        is_warm: whether it started from the converted baseline.
    """

    trial: int
    plan: AttentionPlan
    cost: int
    predicted: float
    trained: float
    is_warm: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured and predicted.

    Args:
        name: of the study.
        axis: name of the cost.
        base_cost: of the baseline.
        changes: every single change that was measured.
        costs: of the plans of those.
        measured: what they did to the loss.
        front: predicted.
        checks: plans that were predicted and measured.
        validity: what these say; None with too few.
        chosen: of the front, spread over the axis.
        outcomes: what training made of predictions.
        is_same_measure: whether their losses are of the measure that is predicted, bits a token;
            if not, only their order can be compared.
    """

    name: str
    axis: str
    base_cost: int
    changes: Sequence[Change]
    costs: Mapping[AttentionPlan, int]
    measured: Mapping[AttentionPlan, Measured]
    front: Sequence[Prediction]
    checks: Sequence[Check]
    validity: Validity | None
    chosen: Sequence[Prediction]
    outcomes: Sequence[Outcome] = ()
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


def write_findings(findings: Findings, folder: Path) -> None:
    """Write tables, figures and summary.md.

    sensitivity.csv (single changes), predicted.csv (the front), checks.csv (predicted and
    measured), outcomes.csv (what training made of predictions), heatmap and predicted as PNG and
    SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(
        [_change_row(change, findings) for change in findings.changes], folder / "sensitivity.csv"
    )
    if findings.checks:
        rows = [asdict(check) | {"plan": check.plan.dumps()} for check in findings.checks]
        write_rows(rows, folder / "checks.csv")
    if findings.outcomes:
        rows = [asdict(o) | {"plan": o.plan.dumps()} for o in findings.outcomes]
        write_rows(rows, folder / "outcomes.csv")
    write_rows([prediction_row(p, findings) for p in findings.front], folder / "predicted.csv")
    for name, figure in (("heatmap", heat_map(findings)), ("predicted", curve(findings))):
        save_figure(figure, folder, name)
    (folder / "summary.md").write_text(_summary(findings), encoding="utf-8")


def prediction_row(prediction: Prediction, findings: Findings) -> dict[str, Any]:
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


def _change_row(change: Change, findings: Findings) -> dict[str, Any]:
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


def _summary(findings: Findings) -> str:
    lines = [f"# {findings.name}: what single conversions cost", "", findings.verdict, ""]
    if not findings.is_guide:
        return "\n".join(lines)
    lines += [
        f"| {findings.axis} | change | predicted loss change | measured | plan |",
        "|---:|---:|---:|---:|---|",
    ]
    for prediction in findings.chosen:
        row = prediction_row(prediction, findings)
        measured = "" if row["measured"] is None else f"{row['measured']:+.4f}"
        lines.append(
            f"| {row['cost']:,} | {row['cost_change']:+.1%} | {row['corrected']:+.4f} "
            f"| {measured} | {prediction.plan} |"
        )
    if findings.trained_ranks is not None:
        lines += ["", f"{outcome_text(findings)}."]
    return "\n".join(lines) + "\n"


def outcome_text(findings: Findings) -> str:
    """How trained trials compare with predictions, in words; empty with too few."""
    ranks = findings.trained_ranks
    if ranks is None:
        return ""
    text = f"Predictions and {len(findings.outcomes)} trained trials: {ranks}"
    if findings.remaining is not None:
        text += (
            f"; fine-tuning left {findings.remaining:.2f} of what was predicted (median), so the "
            "curve is drawn at that scale, too"
        )
    return text


def curve(findings: Findings) -> Figure:
    """The predicted front, with what was measured without training, and what training made of
    it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    expected = [findings.corrected(p.change) for p in findings.front]
    costs = [p.cost for p in findings.front]
    axes.step(costs, expected, where="post", color="#0b5cad", linewidth=1.4, label="predicted")
    if findings.remaining is not None:
        after = [findings.remaining * change for change in expected]
        axes.step(
            costs,
            after,
            where="post",
            color="#c44e00",
            linewidth=1.0,
            linestyle="--",
            label=f"predicted, times {findings.remaining:.2f} for fine-tuning",
        )
    for kind, marker in (("predicted", "o"), ("random", "x")):
        some = [check for check in findings.checks if check.kind == kind]
        if some:
            axes.scatter(
                [check.cost for check in some],
                [check.measured for check in some],
                s=22,
                marker=marker,
                color="#0b5cad" if kind == "predicted" else "#8a8f98",
                label=f"converted, {'from this front' if kind == 'predicted' else 'random plans'}",
            )
    if findings.outcomes and findings.is_same_measure:
        axes.scatter(
            [o.cost for o in findings.outcomes],
            [o.trained for o in findings.outcomes],
            s=30,
            marker="^",
            facecolors="none",
            edgecolors="#c44e00",
            label="trained trials, against the trained baseline",
        )
    axes.axhline(0.0, color="#8a8f98", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xlabel(findings.axis.replace("_", " "))
    axes.set_ylabel("change of the validation loss, bits a token")
    axes.legend(frameon=False, fontsize=8)
    return figure


def heat_map(findings: Findings) -> Figure:
    """Units by choices, coloured by the change of the loss."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(change.unit for change in findings.changes))
    choices = list(dict.fromkeys(change.choice for change in findings.changes))
    values = np.full((len(units), len(choices)), np.nan)
    for change in findings.changes:
        place = units.index(change.unit), choices.index(change.choice)
        values[place] = max(SHOWN[0], findings.measured[change.plan].change)
    # Choices that cost most come last, wherever the space lists them.
    order = np.argsort(np.nanmean(values, axis=0), kind="stable")
    size = (3.2 + 0.34 * len(choices), 2.4 + 0.3 * len(units))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(values[:, order], cmap="cividis_r", norm=LogNorm(*SHOWN), aspect="auto")
    axes.set_yticks(range(len(units)), units, fontsize=8)
    axes.set_xticks(
        range(len(choices)),
        [choices[i] for i in order],
        fontsize=7,
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_title("Change of the validation loss, one unit converted", fontsize=9)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("bits a token", fontsize=8)
    return figure
