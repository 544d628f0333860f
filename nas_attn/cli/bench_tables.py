"""What benchmarks show when they are done, as rich tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nas_attn.benchmark.commands import Speed, ratio
from nas_attn.benchmark.setting import Timing


def timings_tables(timings: Sequence[Timing]) -> Group:
    """Times over the baseline's, with their spread, by contender and shape: a table a phase."""
    return Group(*(_timings_table(timings, p) for p in dict.fromkeys(t.phase for t in timings)))


def _timings_table(timings: Sequence[Timing], phase: str) -> Table:
    rows = [timing for timing in timings if timing.phase == phase]
    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    table.add_column(f"{phase.replace('_', ' ')}: time / baseline's")
    columns = list(dict.fromkeys((t.batch, t.length) for t in rows))
    for batch, length in columns:
        table.add_column(f"{batch}x{length}", justify="right", no_wrap=True)
    cells = {(t.contender, t.batch, t.length): t for t in rows}
    for name in dict.fromkeys(timing.contender for timing in rows):
        row = [cells.get((name, *column)) for column in columns]
        table.add_row(name, *("" if t is None else _ratio_text(t) for t in row))
    return table


def speeds_table(speeds: Sequence[Speed]) -> Table:
    """Speeds of fairseq's commands and how many times stock fairseq's they are, medians."""
    table = Table(box=box.HORIZONTALS)
    table.add_column("model", no_wrap=True)
    for title in ("train\nwords/s", "generate\nsentences/s", "whole\ncommand"):
        table.add_column(title, justify="right")
        table.add_column("/ stock", justify="right")
    stock = speeds[0]
    for speed in speeds:
        cells = [speed.contender]
        for measure in ("words_a_second", "decoding", "command"):
            values = getattr(speed, measure)
            cells += [
                f"{statistics.median(values):.1f}",
                f"{ratio(values, getattr(stock, measure)):.2f}",
            ]
        table.add_row(*cells)
    return table


def _ratio_text(timing: Timing) -> Text:
    style = "green" if timing.ratio < 0.97 else "red" if timing.ratio > 1.03 else ""
    return Text.assemble((f"{timing.ratio:.2f}", style), (f" \u00b1{timing.spread:.0%}", "dim"))
