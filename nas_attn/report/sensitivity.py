"""What single conversions cost, and what they predict: tables, figures and a summary."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nas_attn.analysis.sensitivity import (
    SensitivityFindings,
    change_row,
    improvement_row,
    prediction_row,
    surface_row,
)
from nas_attn.files import write_text
from nas_attn.report.figures import save_figure
from nas_attn.report.formatting import cost_words
from nas_attn.report.rendering import render_markdown
from nas_attn.report.tables import write_rows

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SHOWN = (1e-3, 3.0)
"""The least and the largest change that colours of the heat map distinguish."""
LINEAR = 0.01
"""Changes up to which the figure of the predicted front is linear; logarithmic beyond."""


def write_findings(findings: SensitivityFindings, folder: Path) -> None:
    """Write tables, figures and summary.md.

    sensitivity.csv (single changes), predicted.csv (the front), checks.csv (predicted and
    measured), outcomes.csv (what training made of predictions), surface.csv (the front over two
    costs), improved.csv (plans next to recommended ones), heatmap, predicted and surface as PNG
    and SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(
        [change_row(change, findings) for change in findings.changes], folder / "sensitivity.csv"
    )
    if findings.checks:
        rows = [asdict(check) | {"plan": check.plan.dumps()} for check in findings.checks]
        write_rows(rows, folder / "checks.csv")
    if findings.outcomes:
        rows = [asdict(o) | {"plan": o.plan.dumps()} for o in findings.outcomes]
        write_rows(rows, folder / "outcomes.csv")
    write_rows([prediction_row(p, findings) for p in findings.front], folder / "predicted.csv")
    figures = {"heatmap": heat_map(findings), "predicted": curve(findings)}
    if findings.second is not None:
        write_rows([surface_row(p, findings) for p in findings.surface], folder / "surface.csv")
        figures["surface"] = surface(findings)
    if findings.improvements:
        rows = [improvement_row(one) for one in findings.improvements]
        write_rows(rows, folder / "improved.csv")
    for name, figure in figures.items():
        save_figure(figure, folder, name)
    write_text(folder / "summary.md", _summary(findings))


def _summary(findings: SensitivityFindings) -> str:
    return render_markdown(
        "sensitivity.md",
        name=findings.name,
        verdict=findings.verdict,
        is_guide=findings.is_guide,
        axis=findings.axis,
        rows=[(prediction_row(chosen, findings), chosen.plan) for chosen in findings.chosen],
        outcomes=outcome_text(findings),
        surface=surface_text(findings),
        improvements=findings.improvements,
        improvement=findings.improvement_text,
        bleu=findings.bleu_text,
        decoding=findings.decoding_text,
    )


def surface_text(findings: SensitivityFindings) -> str:
    """What the front over two costs holds, in words; empty without one."""
    if findings.second is None:
        return ""
    return (
        f"{len(findings.surface):,} plans are predicted to be dominated by no other in "
        f"{findings.axis}, {findings.second} and loss together (surface.csv)"
    )


def outcome_text(findings: SensitivityFindings) -> str:
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


def curve(findings: SensitivityFindings) -> Figure:
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
    axes.set_yscale("symlog", linthresh=LINEAR)
    # What is better than the baseline is rare, and the scale would give it half the figure; the
    # margin above is a share of the value, as the scale is logarithmic there.
    shown = _shown_changes(findings)
    axes.set_ylim(min(-LINEAR / 5, 1.2 * min(shown)), max(2 * LINEAR, 1.6 * max(shown)))
    _mark_cost(axes.xaxis)
    axes.set_xlabel(cost_words(findings.axis))
    axes.set_ylabel(f"change of the validation loss, {findings.unit}")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def surface(findings: SensitivityFindings) -> Figure:
    """The predicted front over two costs, coloured by the change of the loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    assert findings.second is not None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # What loses most is drawn last, for there is least of it.
    points = sorted(findings.surface, key=lambda point: point.change)
    drawn = axes.scatter(
        [point.cost for point in points],
        [point.others[0] for point in points],
        c=[max(SHOWN[0], findings.corrected(point.change)) for point in points],
        s=9,
        cmap="cividis_r",
        norm=LogNorm(*SHOWN),
    )
    for axis, name in ((axes.xaxis, findings.axis), (axes.yaxis, findings.second)):
        _mark_cost(axis)
        axis.set_label_text(cost_words(name))
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label(f"predicted change of the validation loss, {findings.unit}", fontsize=8)
    return figure


def _mark_cost(axis: Axis) -> None:
    """Few ticks, with whole numbers in groups of three digits."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _shown_changes(findings: SensitivityFindings) -> list[float]:
    """The changes that the figure of the predicted front shows."""
    changes = [findings.corrected(p.change) for p in findings.front]
    changes += [check.measured for check in findings.checks]
    changes += [o.trained for o in findings.outcomes if findings.is_same_measure]
    return changes or [0.0]


def heat_map(findings: SensitivityFindings) -> Figure:
    """Choices by units, coloured by the change of the loss; what costs most stands below."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(change.unit for change in findings.changes))
    choices = _by_change(findings)
    values = np.full((len(choices), len(units)), np.nan)
    # Names are written beside the rows, so their length makes the figure wide.
    width = 1.6 + 0.34 * len(units) + 0.058 * max(map(len, choices))
    figure = Figure(figsize=(width, 1.5 + 0.19 * len(choices)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    title = "Change of the validation loss, one unit converted"
    for change in findings.changes:
        row, column = choices.index(change.choice), units.index(change.unit)
        expected = findings.expected[change.plan].change
        values[row, column] = max(SHOWN[0], expected)
        if change.plan not in findings.measured:
            title = "Change of the validation loss, one unit converted (~: by gradients)"
            colour = "white" if expected > math.sqrt(SHOWN[0] * SHOWN[1]) else "black"
            axes.text(column, row, "~", ha="center", va="center", fontsize=7, color=colour)
    image = axes.imshow(values, cmap="cividis_r", norm=LogNorm(*SHOWN), aspect="auto")
    axes.set_yticks(range(len(choices)), choices, fontsize=7)
    axes.set_xticks(
        range(len(units)), units, fontsize=7, rotation=60, ha="right", rotation_mode="anchor"
    )
    figure.suptitle(title, fontsize=9)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("bits per token", fontsize=8)
    return figure


def _by_change(findings: SensitivityFindings) -> list[str]:
    """The choices, by the mean of what they change."""
    changes: dict[str, list[float]] = {}
    for change in findings.changes:
        of_choice = changes.setdefault(change.choice, [])
        of_choice.append(max(SHOWN[0], findings.expected[change.plan].change))
    return sorted(changes, key=lambda choice: statistics.fmean(changes[choice]))
