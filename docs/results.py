"""What the studies of this repository measured, read from the tables that are committed.

Tables are those of studies/README.md, the front.csv beside it, and the pages named here. Nothing is
measured again, and no number stands in this file but the shapes of the models.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nas_attn.attention import SCHEMES
from nas_attn.attention.counting import count_choice
from nas_attn.attention.registry import get_scheme
from nas_attn.plan import AttentionChoice, SiteShape

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "studies/README.md"
SITES = ("encoder_self", "decoder_self", "encoder_decoder")
NAMES = "|".join(SCHEMES)

Row = dict[str, str]
Sites = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Args:
        heading: Heading that it stands below.
        titles: Of its columns; where one stands twice, the second has a 2 behind it.
        rows: Cells by title.
    """

    heading: str
    titles: tuple[str, ...]
    rows: tuple[Row, ...]


def tables(text: str) -> Iterator[Table]:
    """Tables of a Markdown text, in order."""
    heading, lines = "", [*text.splitlines(), ""]
    block: list[list[str]] = []
    for line in lines:
        if line.startswith("#"):
            heading = line.lstrip("# ").strip()
        if line.startswith("|"):
            block.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])])
        elif block:
            titles = [t + "2" * (t in block[0][:i]) for i, t in enumerate(block[0])]
            rows = tuple(dict(zip(titles, row, strict=True)) for row in block[2:])
            yield Table(heading, tuple(titles), rows)
            block = []


def number(text: str) -> float | None:
    """The first number of a cell such as `+0.2784 (.0121)` or `-37.2%`; None without one."""
    found = re.match(r"[+-]?[\d,]*\.?\d+", text.strip())
    return float(found.group().replace(",", "")) if found else None


def schemes_of(plan: str) -> Sites:
    """Schemes at each site of a plan in words; a study of one scheme leaves the sites out."""
    sites: Sites = {}
    for part in plan.replace("\\", "").split("; left:")[0].split(";"):
        where = re.match(rf"\s*(everywhere|the rest|(?:{'|'.join(SITES)}|, )+) ", part)
        found = frozenset(re.findall(rf"\b({NAMES})\b", part))
        named = where.group(1).split(", ") if where else ["everywhere"]
        if named in (["everywhere"], ["the rest"]):
            named = [site for site in SITES if site not in sites]
        sites |= dict.fromkeys(named, found)
    return sites


# Fronts


@dataclass(frozen=True)
class Point:
    """A trained plan of a search.

    Args:
        sites: Its schemes by site.
        size: Parameters of the kind that the search weighs.
        change: Of the loss, against the baseline.
    """

    sites: Sites
    size: float
    change: float


@dataclass(frozen=True)
class Front:
    """A front that a search found.

    Args:
        name: Of the study.
        link: Where its numbers stand, from the folder of docs.
        points: From small to large; the baseline too, if nothing dominates it.
        baseline: Parameters of the baseline.
    """

    name: str
    link: str
    points: tuple[Point, ...]
    baseline: float


@cache
def fronts() -> list[Front]:
    """Every front that is committed."""
    found = []
    for table in tables((ROOT / RESULTS).read_text()):
        if "plan" in table.titles and _change(table):
            found.append(_front(table.heading, [_point(row, table) for row in table.rows]))
    for path in sorted((ROOT / "studies").glob("*/front.csv")):
        if path.parent.name not in {front.name for front in found}:
            found.append(_front(path.parent.name, _of_file(path)))
    return found


def _change(table: Table) -> str:
    """Title of the column with changes of the loss; empty without one."""
    if table.titles[-1] == "test BLEU":
        return table.titles[-2]
    if "warm" in table.titles:
        return "warm"
    return "change2" if "change2" in table.titles else ""


def _point(row: Row, table: Table) -> Point:
    size = next(t for t in table.titles if "parameters" in t)
    change = number(row[_change(table)]) or 0.0
    return Point(schemes_of(row["plan"]), number(row[size]) or 0.0, change)


def _of_file(path: Path) -> list[Point]:
    sites, points = sites_of(path.parent.name), []
    with path.open() as file:
        for row in csv.DictReader(file):
            found = schemes_of(row["plan"])
            schemes = {site: found[site] for site in sites}
            points.append(Point(schemes, float(row["cost"]), float(row["loss_change"] or 0)))
    return points


def _front(name: str, points: list[Point]) -> Front:
    """The points that no other dominates; the baseline is the largest."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size, point.change)):
        if not best or point.change < best[-1].change:
            best.append(point)
    return Front(name, _link(name), tuple(best), max(point.size for point in points))


def anchor(heading: str) -> str:
    """The anchor that Markdown gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _link(heading: str) -> str:
    return f"studies/results.md#{anchor(heading)}"


# One scheme everywhere


@dataclass(frozen=True)
class Column:
    """Results of one study that compare with one another.

    Args:
        study: Its name.
        how: How its models came to their weights.
        link: Where its numbers stand, from the folder of docs.
        digits: Of the changes there, after the point.
    """

    study: str
    how: str
    link: str
    digits: int = 4


@dataclass(frozen=True)
class Result:
    """What one plan came to.

    Args:
        scheme: The scheme that it has everywhere, or `MIXED`.
        share: Parameters of its attention over those of multi-head attention.
        change: Of the loss, against the baseline.
        error: Noise of the change, as the study states it; None with one seed.
    """

    scheme: str
    share: float
    change: float
    error: float | None = None


MIXED = "several schemes"
STEPS = 16
"""Plans are compared whose attention has the same number of sixteenths, rounded."""
NUMBERED = {
    "collaborative": "shared_dim",
    "grouped_query": "num_groups",
    "grouped_head": "kept_heads",
    "reduced_key": "key_dim",
}
"""Option that a bare number stands for: "collaborative, 8"."""
WORDS: Mapping[str, Mapping[str, int | bool]] = {
    "one value head": {"num_value_heads": 1},
    "narrow output": {"narrow_output": True},
}
WARM, COLD = "warm start", "from scratch"
INHERITED = "With distillation, a ladder and longer fine-tuning"
DISTILLED = "distilled, fine-tuned"
RECORDS = {"multi30k_record": "change of BLEU", "wikitext2_record": "change of test loss"}
"""Studies of record, each with a title of its tables that no other has."""
RECORDED = {"plan": DISTILLED, "in every layer": DISTILLED, "trained from nothing": COLD}
"""How models of these tables were trained, by the title of the column with their plans."""


def options_of(text: str) -> tuple[str, dict[str, int | bool]]:
    """Scheme and options of a text such as `collaborative, 8, one value head`.

    Options that change no count of parameters are left out.
    """
    text = text.partition("; left:")[0].replace("shared dimension ", "")
    scheme = re.search(rf"\b({NAMES})\b", text)
    assert scheme is not None, text
    options: dict[str, int | bool] = {}
    for words, meaning in WORDS.items():
        options |= meaning if words in text else {}
    for name, value in re.findall(r"(\w+)=(True|\d+)(?=[,)])", text):
        if name not in ("heads", "num_groups") or scheme[1] == "grouped_query":
            options[name] = value == "True" or int(value)
    bare = re.match(r"[,(] ?(\d+)", text[scheme.end() :])
    if bare:
        options[NUMBERED[scheme[1]]] = int(bare[1])
    return scheme[1], options


@dataclass(frozen=True)
class Shape:
    """Attention of a study's model.

    Args:
        modules: Number of them.
        embed_dim, num_heads: Of each.
    """

    modules: int
    embed_dim: int
    num_heads: int

    def share(self, text: str) -> float:
        """What of multi-head attention's parameters is left by a scheme in words."""
        scheme, options = options_of(text)
        shape = SiteShape(num_layers=1, embed_dim=self.embed_dim, num_heads=self.num_heads)
        return _count(scheme, options, shape) / _count("multi_head", {}, shape)

    def share_at(self, front: Front, size: float) -> float:
        """The same of a plan by its model's size."""
        shape = SiteShape(num_layers=1, embed_dim=self.embed_dim, num_heads=self.num_heads)
        return 1 - (front.baseline - size) / (self.modules * _count("multi_head", {}, shape))


def _count(scheme: str, options: Mapping[str, int | bool], shape: SiteShape) -> int:
    return count_choice(AttentionChoice.of(scheme, **options), shape).parameters


@cache
def training_of(study: str) -> dict[str, Any]:
    """What a study's file says of its training."""
    text = (ROOT / f"studies/{study}.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)["training"]
    return found


def sites_of(study: str) -> tuple[str, ...]:
    """Sites that a study's model has."""
    is_translation = training_of(study)["task"] == "translation"
    return SITES if is_translation else ("decoder_self",)


@cache
def shape_of(study: str) -> Shape:
    """The shape in a study's file; encoder and decoder are as wide."""
    given = training_of(study)["arguments"]
    sides = ("encoder" if site == "encoder_self" else "decoder" for site in sites_of(study))
    modules = sum(given[f"{side}-layers"] for side in sides)
    return Shape(modules, given["decoder-embed-dim"], given["decoder-attention-heads"])


@cache
def uniform_results() -> dict[Column, list[Result]]:
    """What plans of one scheme everywhere came to, and fronts of several schemes beside them."""
    found: dict[Column, list[Result]] = {}
    for column, result in _all_results():
        found.setdefault(column, []).append(result)
    return found


def _all_results() -> Iterator[tuple[Column, Result]]:
    page = [*tables((ROOT / RESULTS).read_text())]
    yield from _demo(page)
    for front in fronts():
        yield from _of_front(front)
    yield from _warm_start(page)
    yield from _inherited(page)
    yield from _recorded(page)
    yield from _grouped(page)
    yield from _in_two_groups(page)
    yield from _wide()


def _of_front(front: Front) -> Iterator[tuple[Column, Result]]:
    """Points of a front that began with multi-head attention; one scheme, or several."""
    ways = {"demo": WARM, "multi30k_en_de": COLD, "Every scheme": COLD, "multi30k_warm_start": WARM,
            "multi30k_sensitivity": WARM, "multi30k_three_papers": WARM}  # fmt: skip
    if front.name not in ways:
        return
    file = "multi30k_en_de" if front.name == "Every scheme" else front.name
    column = Column(front.name, ways[front.name], front.link)
    for point in front.points:
        schemes = frozenset().union(*point.sites.values())
        scheme = MIXED if len(schemes) > 1 else next(iter(schemes))
        share = shape_of(file).share_at(front, point.size)
        if scheme != "multi_head":
            yield column, Result(scheme, share, point.change)


def _demo(page: list[Table]) -> Iterator[tuple[Column, Result]]:
    """Head embeddings by how they start; the default is taken."""
    text = (ROOT / RESULTS).read_text()
    noise, baseline = re.findall(
        r"noise of one trial ([\d.]+), multi-head attention ([\d.]+)", text
    )[0]
    column = Column("demo", COLD, _link("How head embeddings start"))
    for row in table_with(page, "scheme everywhere").rows:
        name = row["scheme everywhere"]
        loss = number(row[str(get_scheme(name).options().embedding_std)]) or 0.0
        change = loss - float(baseline)
        yield column, Result(name, shape_of("demo").share(name), change, float(noise))


def _warm_start(page: list[Table]) -> Iterator[tuple[Column, Result]]:
    column = Column("multi30k_warm_start", COLD, _link("multi30k_warm_start"))
    shape = shape_of("multi30k_warm_start")
    for row in table_with(page, COLD, "plan").rows:
        where, _, plan = row["plan"].partition(" ")
        if where == "everywhere" and not plan.startswith("multi_head"):
            scheme, _ = options_of(plan)
            yield column, Result(scheme, shape.share(plan), number(row[COLD]) or 0.0)


def _inherited(page: list[Table]) -> Iterator[tuple[Column, Result]]:
    """What each step of inheritance leaves, with the noise and the mixed plans of three seeds."""
    study, link = "multi30k_sensitivity", _link(INHERITED)
    shape, three = shape_of(study), table_with(page, "one scheme everywhere")
    noise = {}
    for row in three.rows:
        text = row["one scheme everywhere"].partition(" (")[0]
        noise[text] = _in_brackets(row["change"])
    steps = {"converted": "converted", DISTILLED: DISTILLED, COLD: COLD}
    for row in table_with(page, "everywhere", COLD).rows:
        scheme, _ = options_of(row["everywhere"])
        for title, how in steps.items():
            change = number(row[title])
            error = noise.get(row["everywhere"]) if title.startswith("distilled") else None
            if change is not None:
                share = shape.share(row["everywhere"])
                yield Column(study, how, link), Result(scheme, share, change, error)
    front = next(front for front in fronts() if front.name == study)
    for row in three.rows:
        size, change = (number(row[t]) for t in ("predicted plan within the budget", "change2"))
        if size is not None and change is not None:
            result = Result(
                MIXED, shape.share_at(front, size), change, _in_brackets(row["change2"])
            )
            yield Column(study, DISTILLED, link), result


def _recorded(page: list[Table]) -> Iterator[tuple[Column, Result]]:
    """One scheme everywhere, and plans of a search, each of some seeds with an interval."""
    for study, title in RECORDS.items():
        shape, front = shape_of(study), next(front for front in fronts() if front.name == study)
        for table in (table for table in page if {title, "change"} <= {*table.titles}):
            plans = next(name for name in RECORDED if name in table.titles)
            column = Column(study, RECORDED[plans], _link(study))
            for row in table.rows:
                schemes = frozenset().union(*schemes_of(row[plans]).values())
                if schemes != {"multi_head"}:
                    scheme = MIXED if len(schemes) > 1 else next(iter(schemes))
                    share = shape.share_at(front, number(row["non-embedding parameters"]) or 0.0)
                    change, _, interval = row["change"].partition(" ±")
                    yield column, Result(scheme, share, number(change) or 0.0, float(interval))


def _grouped(page: list[Table]) -> Iterator[tuple[Column, Result]]:
    """The vote of the paper, three seeds."""
    noise = re.search(r"noise of a trial's mean is ([\d.]+)", (ROOT / RESULTS).read_text())
    column = Column("multi30k_grouped", COLD, _link("multi30k_grouped"))
    for row in table_with(page, "heads kept of 8").rows:
        if row[""].startswith("GHT-PS:") and noise:
            text = f"grouped_head, {row['heads kept of 8']}"
            share = shape_of("multi30k_grouped").share(text)
            yield (
                column,
                Result("grouped_head", share, number(row["change"]) or 0.0, float(noise[1])),
            )


def _in_two_groups(page: list[Table]) -> Iterator[tuple[Column, Result]]:
    column = Column("multi30k_three_papers", "converted", _link("multi30k_three_papers"))
    for row in table_with(page, "change of the validation loss").rows:
        if row[""] == "ours":
            share = shape_of("multi30k_three_papers").share("grouped_query, 2")
            change = number(row["change of the validation loss"]) or 0.0
            yield column, Result("grouped_query", share, change)


def _wide() -> Iterator[tuple[Column, Result]]:
    """Conversions of a larger model, which is no study of ours."""
    page = "how-to/convert-and-prune.md"
    column = Column("3+3 layers, width 256", "converted", f"{page}#calibrate", digits=3)
    for row in table_with([*tables((ROOT / "docs" / page).read_text())], "by data, refitted").rows:
        scheme, _ = options_of(row["everywhere"])
        share = Shape(9, 256, 4).share(row["everywhere"])
        yield column, Result(scheme, share, number(row["by data, refitted"]) or 0.0)


def _in_brackets(text: str) -> float | None:
    found = re.search(r"\((\.\d+)\)", text)
    return float(found[1]) if found else None


def table_with(page: list[Table], *titles: str) -> Table:
    """The table that has these columns."""
    return next(table for table in page if {*titles} <= {*table.titles})


def by_size(results: list[Result]) -> dict[tuple[int, str], Result]:
    """Of each scheme, by sixteenths of multi-head attention's parameters, the nearest plan."""
    nearest: dict[tuple[int, str], Result] = {}
    for result in results:
        place = round(result.share * STEPS), result.scheme
        other = nearest.get(place)
        if other is None or _distance(result) < _distance(other):
            nearest[place] = result
    return nearest


def _distance(result: Result) -> float:
    return abs(result.share * STEPS - round(result.share * STEPS))
