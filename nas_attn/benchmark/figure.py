"""Times of attention as a figure: how much of the baseline's time each scheme takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_attn.benchmark.attention import Timing

TITLES = {
    "forward": "forward",
    "forward_backward": "forward and backward",
    "decode": "one decoding step",
    "reorder": "reordering hypotheses",
}


def write_figure(timings: Sequence[Timing], path: Path) -> None:
    """Write a figure with a panel for each phase; its ending says the format (png, svg, pdf).

    Args:
        timings: of one run.
        path: the file.
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
        shapes = list(dict.fromkeys((timing.batch, timing.length) for timing in of_phase))
        abreast = 0.8 / len(names) if len(shapes) == 1 else 0.0  # else they would hide each other
        for name in names:
            points = [
                (
                    shapes.index((t.batch, t.length)) + abreast * names.index(name),
                    t.ratio,
                    t.ratio * t.spread / 2,
                )
                for t in of_phase
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
                color=colors[name],
                linestyle="-" if ":" not in name else ":",
            )
        axes.axhline(1.0, color="#8a8f98", linewidth=0.8, zorder=0)
        axes.set_xticks(range(len(shapes)), [f"{batch}x{length}" for batch, length in shapes])
        axes.set_xlabel("batch x tokens")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(TITLES[phase], fontsize=10)
        axes.grid(alpha=0.25)
        if index == 0:
            axes.set_ylabel("time / time of the baseline")
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=140)
