"""Searches compared: a table, a text, and their fronts overlaid."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nas_attn.analysis.comparison import Comparison, ComparisonRow
from nas_attn.analysis.searches import RunSummary
from nas_attn.errors import UsageError
from nas_attn.files import write_text
from nas_attn.report.compare_page import front_of, render_comparison
from nas_attn.report.figures import save_figure
from nas_attn.report.formatting import cost_words
from nas_attn.report.rendering import render_markdown
from nas_attn.report.tables import write_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any colour vision can distinguish, without the yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

INTERVALS = {
    "seeds": (
        "The 95 % interval of a ratio is for the ratio that the same plans have without the noise "
        "of training, as means of very many seeds. One more training of the same plans has noise "
        "of its own and falls outside more often. Nor does it cover that a search that is started "
        "again proposes other plans."
    ),
    "trials": (
        "The 95 % interval of a ratio says how far it hangs on single trials, which are drawn "
        "again with replacement (the baseline stays). Not all trials have several seeds, so the "
        "noise of training is unknown and not covered; nor is it covered that a search that is "
        "started again proposes other plans, for trials of one search depend on each other."
    ),
}


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write compare.html, compare.csv, compare.md, compare.png and compare.svg.

    Args:
        comparison: Comparison of searches.
        folder: Folder of the files; made if it is not there.

    Raises:
        UsageError: the folder cannot be written.
    """
    common = {
        "interval_by": comparison.interval,
        "reference_cost": comparison.reference.cost,
        "reference_loss": comparison.reference.loss,
        "reference": comparison.reference.origin,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows([asdict(row) | common for row in comparison.rows], folder / "compare.csv")
        write_text(folder / "compare.md", comparison_text(comparison))
        _write_figure(comparison, folder)
        page = render_comparison(comparison, reference_text(comparison), interval_text(comparison))
        write_text(folder / "compare.html", page)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}; name another with --out") from None


def reference_text(comparison: Comparison) -> str:
    """The reference and its origin, as a sentence."""
    objectives, reference = comparison.searches[0].objectives, comparison.reference
    return (
        f"Reference of the hypervolume: {reference.cost:,.10g} "
        f"{cost_words(objectives.primary_cost)}, validation {objectives.metric} "
        f"{reference.loss:.4f} ({reference.origin})."
    )


def interval_text(comparison: Comparison) -> str:
    """What the intervals cover, and what not."""
    return INTERVALS[comparison.interval]


def comparison_text(comparison: Comparison) -> str:
    """The comparison in Markdown."""
    return render_markdown(
        "compare.md",
        reference=reference_text(comparison),
        rows=[(row, ratio_text(row)) for row in comparison.rows],
        interval=interval_text(comparison),
        notes=comparison.notes,
    )


def ratio_text(row: ComparisonRow) -> str:
    """A ratio with its interval."""
    if row.ratio is None:
        return "-"
    interval = "" if row.ratio_low is None else f" [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
    return f"{row.ratio:.3f}{interval}"


def _write_figure(comparison: Comparison, folder: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    objectives = comparison.searches[0].objectives
    sign = -1 if objectives.maximise else 1
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for turn, search in enumerate(comparison.searches):
        color, marker = COLORS[turn % len(COLORS)], MARKERS[turn % len(MARKERS)]
        costs, losses = zip(*search.points, strict=True)
        axes.scatter(
            costs, [sign * x for x in losses], s=14, marker=marker, color=color, alpha=0.3, lw=0
        )
        costs, losses = zip(*search.front, strict=True)
        axes.step(
            costs,
            [sign * loss for loss in losses],
            where="post",
            color=color,
            marker=marker,
            linestyle=LINES[turn % len(LINES)],
            linewidth=1.4,
            markersize=5.5,
            label=_label(search.name),
        )
        _add_marks(axes, search, color)
    # One entry of the legend for the baselines of all studies.
    axes.scatter([], [], s=60, marker="D", color="white", edgecolors="black", label="baselines")
    better = " (higher is better)" if objectives.maximise else ""
    axes.set_xlabel(cost_words(objectives.primary_cost))
    axes.set_ylabel(f"validation {objectives.metric}{better}".replace("$", r"\$"))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, folder, "compare")


def _add_marks(axes: Axes, search: RunSummary, color: str) -> None:
    """Standard errors of a front and its baseline, where they are known, and the baseline."""
    noise, baseline = search.trials.noise, search.baseline
    if noise is not None:
        points = {t.number: t for t in (*front_of(search), *([baseline] if baseline else []))}
        errors = [noise.at(trial.loss or 0.0).error for trial in points.values()]
        costs = [float(trial.cost or 0) for trial in points.values()]
        losses = [trial.loss or 0.0 for trial in points.values()]
        axes.errorbar(costs, losses, yerr=errors, fmt="none", ecolor=color, capsize=2, lw=0.9)
    if baseline is not None:
        axes.scatter(
            [float(baseline.cost or 0)],
            [baseline.loss or 0.0],
            s=60,
            marker="D",
            color=color,
            edgecolors="black",
            zorder=3,
        )


def _label(name: str) -> str:
    """A name for a legend: matplotlib takes $ for mathematics and hides what begins with _."""
    shown = "".join(sign if sign.isprintable() else " " for sign in name)
    return " " + shown.replace("$", r"\$")
