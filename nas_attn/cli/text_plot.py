"""A small scatter plot made of characters, for terminals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

MAX_WIDTH = 100
"""Columns; a wider plot of a few points is harder to read."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that are drawn alike.

    Args:
        name: Name for the legend.
        points: Points as x and y; those that are not finite are not drawn.
        mark: Mark of a point, one character.
        ascii_mark: Mark for terminals that know ASCII only.
        style: Rich's; the plot can be read without it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    mark: str
    ascii_mark: str
    style: str = ""

    def drawn(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [point for point in self.points if all(map(math.isfinite, point))]


@dataclass(frozen=True, kw_only=True)
class TextPlot:
    """A scatter plot as wide as the console, in rich's protocol.

    Args:
        series: Series to draw; later ones cover earlier ones.
        x_name: Name of the horizontal axis, with its unit.
        y_name: Name of the vertical axis, with its unit.
        x_text: Function that writes a value of the horizontal axis.
        y_text: Function that writes a value of the vertical axis.
        rows: Lines of the plot itself; names, axis and labels come to three or four more.
    """

    series: Sequence[Series]
    x_name: str
    y_name: str
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    rows: int = 10

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        points = [point for series in self.series for point in series.drawn()]
        if not points:
            yield Text(f"{self.y_name}: nothing to plot yet")
            return
        x_range, y_range = (_Range.of(values) for values in zip(*points, strict=True))
        labels = {
            y_range.place(value, self.rows): self.y_text(value)
            for value in (y_range.low, y_range.high)
        }
        gutter = max(cell_len(label) for label in labels.values())
        width = max(1, min(options.max_width, MAX_WIDTH) - gutter - 2)
        is_ascii = options.ascii_only
        yield from self._heading(gutter + 2 + width, is_ascii)
        canvas = self._canvas(x_range, y_range, width, is_ascii)
        for row in reversed(range(self.rows)):
            edge = ("+" if is_ascii else "┤") if row in labels else ("|" if is_ascii else "│")
            line = Text(f"{labels.get(row, ''):>{gutter}} {edge}", no_wrap=True)
            yield line.append_text(Text.assemble(*canvas[row]))
        corner, dash = ("+", "-") if is_ascii else ("└", "─")
        yield Text(" " * (gutter + 1) + corner + dash * width, no_wrap=True)
        for text in self._foot(x_range, width):
            yield Text(" " * (gutter + 2) + text)

    def _heading(self, width: int, is_ascii: bool) -> Iterator[Text]:
        """What is drawn, on one line if there is room."""
        name, legend = Text(self.y_name), Text()
        for series in self.series:
            if series.drawn():
                mark = series.ascii_mark if is_ascii else series.mark
                legend.append("  " if legend else "")
                legend.append(mark, series.style).append(f" {series.name}")
        room = width - name.cell_len - legend.cell_len
        if room >= 2:
            yield name.append(" " * room).append_text(legend)
        else:
            yield name
            yield legend

    def _canvas(
        self, x_range: _Range, y_range: _Range, width: int, is_ascii: bool
    ) -> list[list[tuple[str, str]]]:
        """Characters with their styles, row by row from below."""
        canvas = [[(" ", "")] * width for _ in range(self.rows)]
        for series in self.series:
            mark = series.ascii_mark if is_ascii else series.mark
            for x, y in series.drawn():
                canvas[y_range.place(y, self.rows)][x_range.place(x, width)] = (mark, series.style)
        return canvas

    def _foot(self, x_range: _Range, width: int) -> Iterator[str]:
        """The ends of the horizontal axis with its name between, or below if there is no room."""
        left, right = self.x_text(x_range.low), self.x_text(x_range.high)
        if x_range.low == x_range.high:
            yield left.center(width).rstrip()
            yield self.x_name.center(width).rstrip()
            return
        room = width - cell_len(left) - cell_len(right)
        if cell_len(self.x_name) + 2 <= room:
            yield left + self.x_name.center(room) + right
        else:
            yield left + " " * max(1, room) + right
            yield self.x_name.center(width).rstrip()


@dataclass(frozen=True)
class _Range:
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Range:
        return cls(min(values), max(values))

    def place(self, value: float, cells: int) -> int:
        """The cell of a value; in the middle if all values are equal."""
        if self.low == self.high:
            return cells // 2
        # Halved, since a difference of two finite numbers may not be finite.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return round(share * (cells - 1))
