"""The front as a figure for print, and as an interactive one for the page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FRONT_COLOR, BASELINE_COLOR, OTHER_COLOR = "#0b5cad", "#c44e00", "#8a8f98"


def write_print_figures(
    trials: pd.DataFrame, folder: Path, *, loss: str, axis: str, noise: float | None
) -> None:
    """Write front.png and front.svg.

    Args:
        trials: from `trials_table`.
        folder: where to.
        loss: name of the loss.
        axis: name of the cost.
        noise: standard error of one trial's loss, drawn as error bars.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done, points, baseline = _split(trials)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rest = done[~done["on_front"] & ~done["baseline"]]
    axes.scatter(
        _numbers(rest, "cost"),
        _numbers(rest, "loss"),
        s=22,
        facecolors="none",
        edgecolors=OTHER_COLOR,
        label="dominated",
    )
    x, y = _numbers(points, "cost"), _numbers(points, "loss")
    axes.step(x, y, where="post", color=FRONT_COLOR, linewidth=1.2)
    axes.errorbar(
        x,
        y,
        yerr=noise,
        fmt="o",
        color=FRONT_COLOR,
        markersize=5,
        capsize=2,
        label="front",
    )
    axes.scatter(
        _numbers(baseline, "cost"),
        _numbers(baseline, "loss"),
        s=70,
        marker="D",
        color=BASELINE_COLOR,
        zorder=3,
        label="multi-head baseline",
    )
    axes.set_xlabel(axis)
    axes.set_ylabel(f"validation {loss}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(folder / "front.png", dpi=160)
    figure.savefig(folder / "front.svg")


def interactive_figure(trials: pd.DataFrame, *, loss: str, axis: str, noise: float | None) -> str:
    """The front as an HTML fragment that holds the plot library, so it needs no network.

    Args:
        trials: from `trials_table`.
        loss: name of the loss.
        axis: name of the cost.
        noise: standard error of one trial's loss, drawn as error bars.
    """
    import plotly.graph_objects as go

    done, points, baseline = _split(trials)
    rest = done[~done["on_front"] & ~done["baseline"]]
    figure = go.Figure()
    styles = [
        (rest, "dominated", "markers", {"color": OTHER_COLOR, "symbol": "circle-open", "size": 8}),
        (points, "front", "lines+markers", {"color": FRONT_COLOR, "size": 9}),
        (
            baseline,
            "multi-head baseline",
            "markers",
            {"color": BASELINE_COLOR, "symbol": "diamond", "size": 13},
        ),
    ]
    for table, name, mode, marker in styles:
        bars = (
            {"type": "constant", "value": noise, "width": 3} if noise and name == "front" else None
        )
        figure.add_trace(
            go.Scatter(
                x=_numbers(table, "cost"),
                y=_numbers(table, "loss"),
                name=name,
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
                + _escape(axis)
                + "<br>"
                + _escape(loss)
                + " %{y:.4f}<extra></extra>",
            )
        )
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": {"text": _escape(axis)}, "tickformat": ","},
        yaxis={"title": {"text": f"validation {_escape(loss)}"}},
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.2},
        height=460,
    )
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True}
    )
    return html


def _split(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    done = trials[(trials["state"] == "complete") & trials["duplicate_of"].isna()]
    return done, done[done["on_front"]].sort_values("cost"), done[done["baseline"]]


def _numbers(table: pd.DataFrame, column: str) -> list[float]:
    return [float(value) for value in table[column]]


def _hover(number: int, plan: str) -> str:
    return f"<b>trial {number}</b><br>" + _escape(plan).replace("; ", "<br>")


def _escape(text: str) -> str:
    import html

    return html.escape(text)
