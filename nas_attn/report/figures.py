"""The front as a figure, for notebooks and for print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nas_attn.analysis.trials import Trials
from nas_attn.errors import UsageError
from nas_attn.files import write_whole
from nas_attn.report.formatting import cost_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT_COLOR, BASELINE_COLOR, OTHER_COLOR = "#0b5cad", "#c44e00", "#8a8f98"


def plot_front(trials: Trials, x: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the front, the trials that it dominates, and the baseline, as reports show them.

    Args:
        trials: Trials of a study; their noise is drawn as error bars.
        x: Name of the cost along the horizontal axis; the study's first if left out.
        ax: Axes to draw on; those of a new pyplot figure if left out.

    Raises:
        UsageError: no trial has such a cost.
    """
    objectives = trials.objectives
    name = objectives.primary_cost if x is None else x
    table = trials.to_frame()
    if table.empty or name not in table:
        known = dict.fromkeys(cost for trial in trials for cost in trial.costs)
        names = ", ".join(known) or "none"
        raise UsageError(f"no trial has the cost {name!r}; known are {names}")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
    done, points, baseline = _split(table)
    rest = done[~done["on_front"] & ~done["baseline"]]
    ax.scatter(
        _numbers(rest, name),
        _numbers(rest, "loss"),
        s=22,
        facecolors="none",
        edgecolors=OTHER_COLOR,
        label="dominated" if len(rest) else None,
    )
    costs, losses = _numbers(points, name), _numbers(points, "loss")
    # Over another cost than the one objective, or with several, the front is no line.
    if objectives.costs == (name,):
        ax.step(costs, losses, where="post", color=FRONT_COLOR, linewidth=1.2)
    bars = None if points["noise"].isna().any() else _numbers(points, "noise")
    ax.errorbar(
        costs, losses, yerr=bars, fmt="o", color=FRONT_COLOR, markersize=5, capsize=2, label="front"
    )
    ax.scatter(
        _numbers(baseline, name),
        _numbers(baseline, "loss"),
        s=70,
        marker="D",
        color=BASELINE_COLOR,
        zorder=3,
        label="multi-head baseline",
    )
    ax.set_xlabel(cost_words(name))
    ax.set_ylabel(objectives.quality.replace("$", r"\$"))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    ax.locator_params(axis="x", nbins=6)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return ax


def write_print_figures(trials: Trials, folder: Path) -> None:
    """Write front.png and front.svg, with a panel for each cost.

    Args:
        trials: Trials of a study; their noise is drawn as error bars.
        folder: Folder of the report.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    costs = trials.objectives.costs
    figure = Figure(figsize=(6.4 if len(costs) == 1 else 9.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, costs, strict=True):
        plot_front(trials, name, axes)
    for axes in panels[1:]:
        axes.set_ylabel("")
        axes.get_legend().remove()
    save_figure(figure, folder, "front")


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png and NAME.svg; the same figure gives the same bytes."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=160)
    write_whole(folder / f"{name}.svg", svg_bytes(figure))
    write_whole(folder / f"{name}.png", pixels.getvalue())


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG, without the date and with names that depend on nothing else."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nas-attn"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _split(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    done = trials[(trials["state"] == "complete") & trials["duplicate_of"].isna()]
    return done, done[done["on_front"]].sort_values("cost"), done[done["baseline"]]


def _numbers(table: pd.DataFrame, column: str) -> list[float]:
    return [float(value) for value in table[column]]
