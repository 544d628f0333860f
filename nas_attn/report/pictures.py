"""How plans look: a colour, a mark and a short code for each choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nas_attn.attention.counting import build_on_meta
from nas_attn.attention.registry import SCHEMES
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

PLAIN = "multi_head"
MIXED = "several schemes"
# Paul Tol's light scheme: told apart by colour-blind eyes, and black text on all is readable.
PLAIN_COLOR, MIXED_COLOR = "#dddddd", "#ffffff"
COLORS = ("#77aadd", "#ee8866", "#44bb99", "#eedd88", "#ffaabb", "#99ddff", "#bbcc33", "#aaaa00")
MARKS = ("circle", "square", "triangle-up", "star", "pentagon", "hexagram", "cross", "x", "bowtie")
PLAIN_MARK, MIXED_MARK = "diamond", "circle-cross"


@dataclass(frozen=True)
class Cell:
    """One module of a plan's picture.

    Args:
        code: short, such as C64/1 for collaborative attention, shared dimension 64, one value head.
        words: the choice in full.
        color: of the scheme.
        share: parameters over those of multi-head attention in its place, at most 1.
    """

    code: str
    words: str
    color: str
    share: float


def scheme_styles() -> dict[str, tuple[str, str]]:
    """The colour and the plotting mark of every scheme, and of plans with several."""
    styles = {PLAIN: (PLAIN_COLOR, PLAIN_MARK)}
    for index, name in enumerate(name for name in SCHEMES if name != PLAIN):
        styles[name] = COLORS[index % len(COLORS)], MARKS[index % len(MARKS)]
    return styles | {MIXED: (MIXED_COLOR, MIXED_MARK)}


def label_of(plan: AttentionPlan) -> str:
    """The one scheme that a plan has beside multi-head attention, or that it has several."""
    schemes = {choice.scheme for _, choices in plan for choice in choices}
    others = schemes - {PLAIN}
    if len(others) > 1:
        return MIXED
    return others.pop() if others else PLAIN


def code_of(choice: AttentionChoice) -> str:
    """The initials of a scheme with its whole numbers, dimensions first: C64/1, GQ2, MH."""
    initials = "".join(word[0] for word in choice.scheme.split("_")).upper()
    options = sorted(choice.options, key=lambda option: (not option[0].endswith("_dim"), option[0]))
    numbers = [str(v) for _, v in options if isinstance(v, int) and not isinstance(v, bool)]
    return initials + "/".join(numbers)


def codes_text(plan: AttentionPlan) -> str:
    """A plan in codes, site by site: encoder_self C64 MH; decoder_self GQ2."""
    sites = (f"{site} {' '.join(code_of(choice) for choice in choices)}" for site, choices in plan)
    return "; ".join(sites)


def plan_picture(
    plan: AttentionPlan, shapes: Mapping[str, SiteShape]
) -> list[tuple[str, list[Cell]]]:
    """Sites in rows, layers in columns.

    Args:
        plan: to be shown.
        shapes: of the model's sites; without them every site has the layers that the plan names.
    """
    styles = scheme_styles()
    rows = []
    for site, choices in plan:
        if shapes and site not in shapes:
            continue
        shape = shapes.get(site)
        layers = choices if shape is None else plan.layers(site, shape.num_layers)
        cells = []
        for choice in layers:
            color = styles.get(choice.scheme, (MIXED_COLOR, MIXED_MARK))[0]
            cells.append(Cell(code_of(choice), str(choice), color, _share(choice, shape)))
        rows.append((site, cells))
    return rows


def _share(choice: AttentionChoice, shape: SiteShape | None) -> float:
    if shape is None:
        return 1.0
    try:
        own, whole = (
            sum(parameter.numel() for parameter in build_on_meta(c, shape).parameters())
            for c in (choice, AttentionChoice(PLAIN))
        )
    except PlanError:
        return 1.0
    return min(1.0, own / whole)
