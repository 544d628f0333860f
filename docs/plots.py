"""Fronts of studies, drawn from the tables that are committed."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from docs.results import Front

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 620, 250, 62, 14, 44
STYLE = (
    "text{font:12px sans-serif;fill:#222}.g{stroke:#8884}.f{fill:none;stroke:#2166ac;"
    "stroke-width:1.5}circle{fill:#2166ac}.b{fill:#c04000}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.f{stroke:#7db4e6}circle{fill:#7db4e6}"
    ".b{fill:#f08a4b}}"
)


Place = Callable[[float, float], tuple[float, float]]
"""From saving and change to a place of the picture."""


def front_plot(front: Front) -> str:
    """A front as SVG: change of the loss over parameters, both against the baseline."""
    points = [p for p in front.points if p.size < front.baseline]
    savings = [point.size / front.baseline - 1 for point in points]
    low = min(0.0, *(point.change for point in points))
    high = max(point.change for point in points)
    left = min(savings) * 1.06

    def place(saving: float, change: float) -> tuple[float, float]:
        x = LEFT + (saving - left) / -left * (WIDTH - LEFT - 14)
        return x, TOP + (high - change) / (high - low) * (HEIGHT - TOP - BOTTOM)

    shapes = _axes(place, left, low, high)
    places = [place(s, p.change) for s, p in zip(savings, points, strict=True)]
    shapes.append(f'<path class="f" d="{_steps(places)}"/>')
    shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
    x, y = place(0.0, 0.0)
    shapes.append(f'<path class="b" d="M{x - 6:.1f} {y:.1f}l6 -6l6 6l-6 6z"/>')
    shapes.append(f'<text x="{x:.0f}" y="{y - 12:.0f}" text-anchor="end">baseline</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = f"<title>Front of {escape(front.name)}</title><style>{STYLE}</style>"
    return "\n".join([head, title, *shapes, "</svg>\n"])


def _steps(places: list[tuple[float, float]]) -> str:
    (x, y), *rest = places
    return f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest)


def _axes(place: Place, left: float, low: float, high: float) -> list[str]:
    shapes, bottom = [], HEIGHT - BOTTOM
    for tenth in range(int(left * 10), 1):
        x, _ = place(tenth / 10, 0.0)
        shapes.append(f'<path class="g" d="M{x:.1f} {TOP}V{bottom}"/>')
        label = f"{tenth / 10:+.0%}" if tenth else "0%"
        shapes.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if s * 5 > high - low)
    for tick in range(int(high / step) + 1):
        change = tick * step
        _, y = place(0.0, change)
        shapes.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - 14}"/>')
        shapes.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{change:+.2f}</text>'
        )
    middle = (LEFT + WIDTH) / 2
    label = "parameters against the baseline; upwards: change of the validation loss"
    shapes.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    return shapes
