"""Searches on tables as a figure: share of the best hypervolume against trials and updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas_attn.benchmark.search.comparison import mean_of, share_at, share_by, shares_after
from nas_attn.benchmark.search.steps import Step

Runs = Mapping[int, Sequence[Step]]
"""Steps of each seed's search."""
PLACES = 40
"""Places at which a curve is drawn."""


def write_figure(
    tables: Mapping[str, Mapping[str, Runs]], paths: Sequence[Path], *, with_time: bool
) -> None:
    """Write a figure with a row of panels for each table.

    Args:
        tables: By the name of the table and what to call a search, its runs.
        paths: Files; their endings say the format (png, svg, pdf).
        with_time: Whether a panel shows virtual time, which differs from updates with workers.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axis_of: dict[str, Callable[[Any, Mapping[str, Runs], Any], None]] = {
        "trials": _against_trials,
        "updates": _against_updates,
    }
    if with_time:
        axis_of["seconds of virtual time"] = _against_time
    names = list(dict.fromkeys(name for searches in tables.values() for name in searches))
    palette = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colors = {name: palette[2 * index % 20 + index // 10] for index, name in enumerate(names)}
    figure = Figure(figsize=(5.2 * len(axis_of), 0.6 + 3.8 * len(tables)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (table, searches) in enumerate(tables.items()):
        for column, (title, draw) in enumerate(axis_of.items()):
            place = row * len(axis_of) + column + 1
            axes = figure.add_subplot(len(tables), len(axis_of), place)
            draw(axes, searches, colors)
            axes.set_xlabel(title)
            axes.set_title(table, fontsize=10)
            axes.set_ylim(top=1.0)
            axes.grid(alpha=0.25)
            if column == 0:
                axes.set_ylabel("share of the best hypervolume")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right upper", frameon=False, fontsize=8)
    for path in paths:
        figure.savefig(path, dpi=140)


def _against_trials(axes: Any, searches: Mapping[str, Runs], colors: Any) -> None:
    for name, runs in searches.items():
        most = max(len(steps) for steps in runs.values())
        places = range(1, most + 1)
        shares = [list(shares_after(runs, trials).values()) for trials in places]
        _draw(axes, list(places), shares, name, colors[name])


def _against_updates(axes: Any, searches: Mapping[str, Runs], colors: Any) -> None:
    for name, runs in searches.items():
        most = max(steps[-1].updates for steps in runs.values())
        places = [float(place) for place in np.linspace(0, most, PLACES + 1)[1:]]
        shares = [[share_at(steps, place) for steps in runs.values()] for place in places]
        _draw(axes, places, shares, name, colors[name])


def _against_time(axes: Any, searches: Mapping[str, Runs], colors: Any) -> None:
    for name, runs in searches.items():
        most = max(steps[-1].time for steps in runs.values())
        places = [float(place) for place in np.geomspace(most / 100, most, PLACES)]
        shares = [[share_by(steps, place) for steps in runs.values()] for place in places]
        _draw(axes, places, shares, name, colors[name])
    axes.set_xscale("log")


def _draw(
    axes: Any, places: Sequence[float], shares: Sequence[Sequence[float]], name: str, color: Any
) -> None:
    """Draw means over seeds, with their 95 % intervals."""
    means = [mean_of(at) for at in shares]
    axes.plot(places, [mean.value for mean in means], label=name, color=color, linewidth=1.4)
    low, high = [mean.low for mean in means], [mean.high for mean in means]
    axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
