"""The front as a figure for print, and as an interactive one for the page; a panel a cost."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

FRONT_COLOR, BASELINE_COLOR, OTHER_COLOR = "#0b5cad", "#c44e00", "#8a8f98"


def write_print_figures(
    trials: pd.DataFrame,
    folder: Path,
    *,
    quality: str,
    costs: Mapping[str, str],
    noise: float | None,
) -> None:
    """Write front.png and front.svg.

    Args:
        trials: from `trials_table`.
        folder: where to.
        quality: the measure of quality in words.
        costs: their names and what they are in words.
        noise: standard error of one trial's loss, drawn as error bars.
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
            label="dominated",
        )
        x, y = _numbers(points, name), _numbers(points, "loss")
        if len(costs) == 1:
            axes.step(x, y, where="post", color=FRONT_COLOR, linewidth=1.2)
        axes.errorbar(
            x, y, yerr=noise, fmt="o", color=FRONT_COLOR, markersize=5, capsize=2, label="front"
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
    panels[0].set_ylabel(quality)
    panels[0].legend(frameon=False)
    figure.savefig(folder / "front.png", dpi=160)
    figure.savefig(folder / "front.svg")


def interactive_figure(
    trials: pd.DataFrame, *, quality: str, costs: Mapping[str, str], noise: float | None
) -> str:
    """The front as an HTML fragment that holds the plot library, so it needs no network.

    Args:
        trials: from `trials_table`.
        quality: the measure of quality in words.
        costs: their names and what they are in words.
        noise: standard error of one trial's loss, drawn as error bars.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    done, points, baseline = _split(trials)
    rest = done[~done["on_front"] & ~done["baseline"]]
    figure = make_subplots(cols=len(costs), shared_yaxes=True, horizontal_spacing=0.04)
    # A line along the front says what a budget buys; with two costs there is no such line.
    lines = "lines+markers" if len(costs) == 1 else "markers"
    styles = [
        (rest, "dominated", "markers", {"color": OTHER_COLOR, "symbol": "circle-open", "size": 8}),
        (points, "front", lines, {"color": FRONT_COLOR, "size": 9}),
        (
            baseline,
            "multi-head baseline",
            "markers",
            {"color": BASELINE_COLOR, "symbol": "diamond", "size": 13},
        ),
    ]
    for column, (cost, words) in enumerate(costs.items(), start=1):
        for table, name, mode, marker in styles:
            bars = (
                {"type": "constant", "value": noise, "width": 3}
                if noise and name == "front"
                else None
            )
            figure.add_trace(
                go.Scatter(
                    x=_numbers(table, cost),
                    y=_numbers(table, "loss"),
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    mode=mode,
                    marker=marker,
                    line={"shape": "hv", "color": FRONT_COLOR, "width": 1.5},
                    error_y=bars,
                    # Hover text is HTML to Plotly, and plans come from files.
                    text=[
                        _hover(number, plan)
                        for number, plan in zip(table["trial"], table["plan"], strict=True)
                    ],
                    hovertemplate="%{text}<br>%{x:,} "
                    + html.escape(words)
                    + "<br>"
                    + html.escape(quality)
                    + " %{y:.4f}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        ticks = {"tickformat": ","} if cost != "decoding_seconds" else {}
        figure.update_xaxes(title={"text": html.escape(words)}, **ticks, row=1, col=column)
    figure.update_yaxes(title={"text": html.escape(quality)}, row=1, col=1)
    figure.update_layout(
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.2},
        height=460,
    )
    fragment: str = figure.to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True}
    )
    return fragment


def _split(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    done = trials[(trials["state"] == "complete") & trials["duplicate_of"].isna()]
    return done, done[done["on_front"]].sort_values("cost"), done[done["baseline"]]


def _numbers(table: pd.DataFrame, column: str) -> list[float]:
    return [float(value) for value in table[column]]


def _hover(number: int, plan: str) -> str:
    return f"<b>trial {number}</b><br>" + html.escape(plan).replace("; ", "<br>")
