"""Times of attention as a figure: how much of the baseline's time each scheme takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_attn.benchmark.setting import Timing

TITLES = {
    "forward": "forward",
    "forward_backward": "forward and backward",
    "decode": "one decoding step",
    "reorder": "reordering hypotheses",
}


def write_figure(timings: Sequence[Timing], path: Path) -> None:
    """Write a figure with a panel for each phase; its ending says the format (png, svg, pdf).

    Args:
        timings: Times of one run.
        path: The file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(timing.contender for timing in timings))
    palette = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colors = {name: palette[index % len(palette)] for index, name in enumerate(names)}
    phases = list(dict.fromkeys(timing.phase for timing in timings))
    figure = Figure(figsize=(1.5 + 4.6 * len(phases), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for index, phase in enumerate(phases):
        axes = figure.add_subplot(1, len(phases), index + 1)
        of_phase = [timing for timing in timings if timing.phase == phase]
        handles |= _draw_phase(axes, of_phase, colors)
        axes.set_title(TITLES[phase], fontsize=10)
        if index == 0:
            axes.set_ylabel("time / time of the baseline")
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=140)


def _draw_phase(axes: Any, timings: Sequence[Timing], colors: Mapping[str, Any]) -> dict[str, Any]:
    """Draw one phase's times over the baseline's.

    Args:
        axes: Axes of Matplotlib.
        timings: Those of the phase.
        colors: Color of every contender.

    Returns:
        The lines of the contenders that have times.
    """
    shapes = list(dict.fromkeys((timing.batch, timing.length) for timing in timings))
    abreast = 0.8 / len(colors) if len(shapes) == 1 else 0.0  # else they would hide each other
    handles = {}
    for place, (name, color) in enumerate(colors.items()):
        points = [
            (
                shapes.index((t.batch, t.length)) + abreast * place,
                t.ratio,
                t.ratio * t.spread / 2,
            )
            for t in timings
            if t.contender == name
        ]
        if not points:
            continue
        places, ratios, spreads = zip(*points, strict=True)
        handles[name] = axes.errorbar(
            places,
            ratios,
            yerr=spreads,
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            color=color,
            linestyle="-" if ":" not in name else ":",
        )
    axes.axhline(1.0, color="#8a8f98", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(shapes)), [f"{batch}x{length}" for batch, length in shapes])
    axes.set_xlabel("batch x tokens")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)
    return handles
