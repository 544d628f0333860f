"""The plot of characters: points, the ends of the axes, and no failure on few or odd points."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from nas_attn.cli.text_plot import MAX_WIDTH, Series, TextPlot


def render(plot: TextPlot, width: int = 60, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, color_system=None)
    with console.capture() as capture:
        console.print(plot)
    text = capture.get()
    text.encode(encoding)
    return text.splitlines()


def plot_of(*series: list[tuple[float, float]], rows: int = 8) -> TextPlot:
    marks = [("dominated", "·", "."), ("front", "●", "o"), ("baseline", "◆", "#")]
    return TextPlot(
        series=[
            Series(name=name, points=points, mark=mark, ascii_mark=ascii_mark)
            for (name, mark, ascii_mark), points in zip(marks, series, strict=False)
        ],
        x_name="total parameters",
        y_name="validation loss",
        x_text=lambda value: f"{value:,.0f}",
        y_text=lambda value: f"{value:.4f}",
        rows=rows,
    )


POINTS = plot_of([(1500, 3.5)], [(1000, 4.0), (2000, 3.0)], [(2500, 3.0)])


def test_points_lie_where_they_belong() -> None:
    lines = render(POINTS)
    assert lines[0].startswith("validation loss ")
    assert lines[0].endswith("· dominated  ● front  ◆ baseline")
    assert lines[1].startswith("4.0000 ┤●")
    assert lines[8].startswith("3.0000 ┤")
    assert lines[8].endswith("◆")
    assert lines[8].index("●") == 8 + round((2000 - 1000) / 1500 * (60 - 8 - 1))
    assert sum("·" in line for line in lines[1:9]) == 1
    assert lines[-1].split() == ["1,000", "total", "parameters", "2,500"]
    assert {len(line) for line in lines} == {60}


def test_ascii_where_the_terminal_knows_no_more() -> None:
    lines = render(POINTS, encoding="ascii")
    assert lines[1].startswith("4.0000 +o")
    assert lines[8].endswith("#")
    assert ". dominated  o front  # baseline" in lines[0]


def test_later_series_cover_earlier_ones() -> None:
    lines = render(plot_of([(1, 1), (2, 2)], [(1, 1)], [(1, 1)]))
    assert lines[8].startswith("1.0000 ┤◆")
    assert "●" not in "".join(lines[1:])


@pytest.mark.parametrize(
    "points",
    [
        [(1000.0, 3.0)],
        [(1000.0, 3.0)] * 3,
        [(1000.0, 3.0), (2000.0, 3.0)],
        [(1000.0, 3.0), (1000.0, 4.0)],
        [(0.0, -1e308), (1.0, 1e308)],
        [(1000.0, 3.0), (2000.0, math.nan), (math.inf, 3.0)],
    ],
    ids=["one", "equal", "one loss", "one cost", "huge", "not finite"],
)
@pytest.mark.parametrize("width", [1, 12, 30, 80])
def test_few_or_odd_points(points: list[tuple[float, float]], width: int) -> None:
    text = "\n".join(render(plot_of([], points), width))
    assert "●" in text
    assert "nan" not in text
    assert "inf" not in text


def test_a_single_value_is_labelled_once_in_the_middle() -> None:
    lines = render(plot_of([], [(1000.0, 3.0)]))
    assert "\n".join(lines).count("3.0000") == 1
    assert "\n".join(lines).count("1,000") == 1


def test_no_point() -> None:
    assert render(plot_of([], [])) == ["validation loss: nothing to plot yet"]
    assert render(plot_of([(1, math.nan)])) == ["validation loss: nothing to plot yet"]


def test_width_is_that_of_the_console_up_to_a_bound() -> None:
    assert max(map(len, render(POINTS, 40))) <= 40
    assert max(map(len, render(POINTS, 300))) == MAX_WIDTH


def test_names_are_shown_as_they_are() -> None:
    plot = TextPlot(
        series=[Series(name="[red]a[/]", points=[(1, 2)], mark="●", ascii_mark="o")],
        x_name="[bold]x",
        y_name="y [/]",
        x_text=str,
        y_text=lambda value: "[blue]",
    )
    text = "\n".join(render(plot))
    for part in ("[red]a[/]", "[bold]x", "y [/]", "[blue]"):
        assert part in text
