"""The front as a figure for print, a panel a cost."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONT_COLOR, BASELINE_COLOR, OTHER_COLOR = "#0b5cad", "#c44e00", "#8a8f98"


def write_print_figures(
    trials: pd.DataFrame,
    folder: Path,
    *,
    quality: str,
    costs: Mapping[str, str],
) -> None:
    """Write front.png and front.svg.

    Args:
        trials: from `trials_table`; its noise is drawn as error bars.
        folder: where to.
        quality: the measure of quality in words.
        costs: their names and what they are in words.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done, points, baseline = _split(trials)
    rest = done[~done["on_front"] & ~done["baseline"]]
    figure = Figure(figsize=(6.4 if len(costs) == 1 else 9.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (name, words) in zip(panels, costs.items(), strict=True):
        axes.scatter(
            _numbers(rest, name),
            _numbers(rest, "loss"),
            s=22,
            facecolors="none",
            edgecolors=OTHER_COLOR,
            label="dominated" if len(rest) else None,
        )
        x, y = _numbers(points, name), _numbers(points, "loss")
        if len(costs) == 1:
            axes.step(x, y, where="post", color=FRONT_COLOR, linewidth=1.2)
        bars = None if points["noise"].isna().any() else _numbers(points, "noise")
        axes.errorbar(
            x, y, yerr=bars, fmt="o", color=FRONT_COLOR, markersize=5, capsize=2, label="front"
        )
        axes.scatter(
            _numbers(baseline, name),
            _numbers(baseline, "loss"),
            s=70,
            marker="D",
            color=BASELINE_COLOR,
            zorder=3,
            label="multi-head baseline",
        )
        axes.set_xlabel(words)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.locator_params(axis="x", nbins=6)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(quality.replace("$", r"\$"))
    panels[0].legend(frameon=False)
    save_figure(figure, folder, "front")


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png and NAME.svg; the same figure gives the same bytes."""
    (folder / f"{name}.svg").write_bytes(svg_bytes(figure))
    figure.savefig(folder / f"{name}.png", dpi=160)


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
