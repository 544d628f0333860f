"""Parts that screens are made of: text from outside, parts below each other, rows with a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MIN_PLAN_WIDTH = 40
"""A plan has at least so many columns, or lines of its own."""


def plain(text: str) -> Text:
    """A text from a file, a log or an error, of which a terminal interprets nothing."""
    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in text))


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Parts one below the other, in rich's protocol.

    Args:
        parts: Parts by name, the most important first.
        fits: Whether tables are shortened to the lines that the terminal has, parts that it has no
            lines for left out, and those named.
        is_spaced: Whether empty lines stand between the parts, if there is no need to fit.
    """

    parts: Sequence[tuple[str, RenderableType]]
    fits: bool = False
    is_spaced: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.fits:
            yield from self._fitted(console, options)
            return
        for index, (_, part) in enumerate(self.parts):
            if self.is_spaced and index:
                yield Text()
            yield part

    def _fitted(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        def height(part: RenderableType) -> int:
            return len(console.render_lines(part, options.update(height=None), pad=False))

        left = max(2, options.size.height - 2)  # one says what is left out, one is the cursor's
        left_out = []
        for name, part in self.parts:
            versions = part.shortened() if isinstance(part, PlanTable) else [part]
            for version in versions:
                if height(version) <= left:
                    left -= height(version)
                    yield version
                    break
            else:
                left_out.append(name)
        if left_out:
            yield Text(f"window too short: {', '.join(left_out)} hidden", style="dim")


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """Rows of short cells and a long plan, in rich's protocol.

    The plan is the last column, or on a narrow console below its row, so that it is never cut.

    Args:
        title: Title above the table.
        columns: Titles of the short cells.
        rows: Short cells, of one or more lines, and the plan with what else is said of it.
        note: What is said below the table, if anything.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Text]]
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="table.title")
        lines = [self.columns, *(line for cells, _ in self.rows for line in _lines(cells))]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        if options.max_width - sum(width + 2 for width in widths) < MIN_PLAN_WIDTH:
            yield from self._stacked(widths)
        else:
            yield self._side_by_side()
        if self.note:
            yield Text(self.note, style="table.caption")

    def shortened(self) -> Iterator[PlanTable]:
        """The table, and then with ever fewer of its rows, of which the first ones stay."""
        yield self
        for count in range(len(self.rows) - 1, 0, -1):
            title = f"{self.title}: the first {count} of {len(self.rows)}"
            yield replace(self, title=title, rows=self.rows[:count])

    def _side_by_side(self) -> Table:
        table = Table(expand=False, box=None)
        for name in self.columns:
            table.add_column(Text(name), justify="right")
        table.add_column("plan", overflow="fold")
        for cells, plan in self.rows:
            table.add_row(*map(Text, cells), plan)
        return table

    def _stacked(self, widths: Sequence[int]) -> Iterator[RenderableType]:
        def line(cells: Sequence[str], style: str = "") -> Text:
            padded = [" " * (w - cell_len(c)) + c for c, w in zip(cells, widths, strict=True)]
            return Text(" " + "  ".join(padded), style=style, overflow="fold")

        yield line(self.columns, "table.header")
        for cells, plan in self.rows:
            yield from map(line, _lines(cells))
            yield Padding(plan, (0, 1, 0, 4))


def _lines(cells: Sequence[str]) -> Iterator[Sequence[str]]:
    """The lines of a row; a cell of fewer lines than others ends in empty ones."""
    return zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
