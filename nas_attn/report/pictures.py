"""How plans look: a colour, a mark and a short code for each choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from nas_attn.errors import PlanError
from nas_attn.plan import SCHEME_NAMES, AttentionChoice, AttentionPlan, OptionValue, SiteShape

PLAIN = "multi_head"
MIXED = "several schemes"
# Paul Tol's light scheme and a violet: distinct to colour-blind eyes, and black text on all is
# readable. Where there is no colour, marks and codes differ too.
PLAIN_COLOR, MIXED_COLOR = "#dddddd", "#ffffff"
COLORS = (
    "#77aadd", "#ee8866", "#44bb99", "#eedd88", "#ffaabb", "#99ddff", "#bbcc33", "#aaaa00",
    "#9988ff", "#ccbb99", "#dd99dd",
)  # fmt: skip
MARKS = (
    "circle", "square", "triangle-up", "star", "pentagon", "hexagram", "cross", "x", "bowtie",
    "star-square", "hourglass",
)  # fmt: skip
PLAIN_MARK, MIXED_MARK = "diamond", "circle-cross"


@dataclass(frozen=True)
class Cell:
    """One module of a plan's picture.

    Args:
        code: Short, such as C64/1 for collaborative attention, shared dimension 64, one value head.
        words: The choice in full.
        color: Colour of the scheme.
        share: Parameters over those of multi-head attention in its place, at most 1.
    """

    code: str
    words: str
    color: str
    share: float


def scheme_styles() -> dict[str, tuple[str, str]]:
    """The colour and the plotting mark of every scheme, and of plans with several."""
    styles = {PLAIN: (PLAIN_COLOR, PLAIN_MARK)}
    for index, name in enumerate(name for name in SCHEME_NAMES if name != PLAIN):
        styles[name] = COLORS[index % len(COLORS)], MARKS[index % len(MARKS)]
    return styles | {MIXED: (MIXED_COLOR, MIXED_MARK)}


def label_of(plan: AttentionPlan) -> str:
    """The one scheme that a plan has beside multi-head attention, or that it has several."""
    schemes = {choice.scheme for _, choices in plan for choice in choices}
    others = schemes - {PLAIN}
    if len(others) > 1:
        return MIXED
    return others.pop() if others else PLAIN


def main_scheme(plan: AttentionPlan, shapes: Mapping[str, SiteShape]) -> str:
    """The scheme that most modules of a plan have; of several such, the first.

    Args:
        plan: Plan to be named.
        shapes: Shapes of the model's sites, which say how many layers a site has.
    """
    counts: Counter[str] = Counter()
    for site, choices in plan:
        shape = shapes.get(site)
        layers = choices if shape is None else plan.layers(site, shape.num_layers)
        counts.update(choice.scheme for choice in layers)
    return counts.most_common(1)[0][0]


def codes_of(plans: Iterable[AttentionPlan]) -> dict[AttentionChoice, str]:
    """A short code for every choice in some plans; no two choices share one.

    A code has the initials of the scheme and its whole numbers, dimensions first: C64/1, GQ2, MH.
    What would share one gets the options that set it apart: C64/1+CB with a content bias, beside
    C64/1 without.

    Args:
        plans: Plans that are shown together.
    """
    choices = dict.fromkeys(choice for plan in plans for _, layers in plan for choice in layers)
    alike: dict[str, list[AttentionChoice]] = {}
    for choice in sorted(choices, key=str):
        alike.setdefault(_short_code(choice), []).append(choice)
    codes: dict[AttentionChoice, str] = {}
    for short, group in alike.items():
        names = sorted({name for choice in group for name, _ in choice.options})
        apart = [name for name in names if len({_value(choice, name) for choice in group}) > 1]
        for choice in group:
            code = whole = short + "".join(_option_code(choice, name) for name in apart)
            count = 1
            while code in codes.values():  # other options with the same initials and value
                count += 1
                code = f"{whole}.{count}"
            codes[choice] = code
    return codes


def _short_code(choice: AttentionChoice) -> str:
    options = sorted(choice.options, key=lambda option: (not option[0].endswith("_dim"), option[0]))
    numbers = [str(v) for _, v in options if isinstance(v, int) and not isinstance(v, bool)]
    return initials(choice.scheme) + "/".join(numbers)


def _option_code(choice: AttentionChoice, name: str) -> str:
    value = dict(choice.options).get(name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"{'+' if value else '-'}{initials(name)}"
    return f"+{initials(name)}{value}"


def _value(choice: AttentionChoice, name: str) -> tuple[type, OptionValue | None]:
    value = dict(choice.options).get(name)
    return type(value), value


def initials(name: str) -> str:
    """The first letters of a name's words, in capitals.

    Args:
        name: Name with underscores, such as that of a scheme or a site.
    """
    return "".join(word[0] for word in name.split("_")).upper()


def codes_text(plan: AttentionPlan, codes: Mapping[AttentionChoice, str]) -> str:
    """A plan in codes, site by site: encoder_self C64 MH; decoder_self GQ2.

    Args:
        plan: Plan to be shown.
        codes: Codes of its choices, from `codes_of`.
    """
    sites = (f"{site} {' '.join(codes[choice] for choice in choices)}" for site, choices in plan)
    return "; ".join(sites)


def plan_picture(
    plan: AttentionPlan,
    shapes: Mapping[str, SiteShape],
    codes: Mapping[AttentionChoice, str],
    parameters: Mapping[str, Mapping[str, int]] | None = None,
) -> list[tuple[str, list[Cell]]]:
    """Sites in rows, layers in columns.

    Args:
        plan: Plan to be shown.
        shapes: Shapes of the model's sites; without them every site has the layers that the plan
            names.
        codes: Codes of its choices, from `codes_of`.
        parameters: Parameters of modules by site and choice, as far as they are known; others are
            counted.
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
            share = _share(choice, shape, (parameters or {}).get(site, {}))
            cells.append(Cell(codes[choice], str(choice), color, share))
        rows.append((site, cells))
    return rows


def _share(choice: AttentionChoice, shape: SiteShape | None, known: Mapping[str, int]) -> float:
    if shape is None:
        return 1.0
    try:
        own, whole = (
            known.get(str(c)) or _count(c, shape) for c in (choice, AttentionChoice(PLAIN))
        )
    except PlanError:
        return 1.0
    return min(1.0, own / whole)


@cache  # to build a module takes milliseconds, and a page has thousands of cells
def _count(choice: AttentionChoice, shape: SiteShape) -> int:
    from nas_attn.attention.counting import count_choice  # imports torch

    return count_choice(choice, shape).parameters
