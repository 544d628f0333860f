"""Sections of pages that say what our studies measured of a scheme."""

from __future__ import annotations

from collections.abc import Iterable

from docs import results
from docs.markdown import escaped, table

CONVERTED = (
    ("multi30k_sensitivity", "studies/README.md", ("everywhere", results.COLD), "non-embedding"),
    ("3+3 layers, width 256", "docs/how-to/convert-and-prune.md", ("by data, refitted",), ""),
)
"""Committed tables of what conversions cost: model, page, titles by which the table is known, and
a title that is left out."""
SITES = {
    "encoder_self": "encoder self",
    "decoder_self": "decoder self",
    "encoder_decoder": "encoder-decoder",
}
LINKS = {
    "studies/README.md": "../../studies/results.md",
    "docs/how-to/convert-and-prune.md": "../../how-to/convert-and-prune.md",
    "docs/how-to/speed.md": "../../how-to/speed.md",
}


def wins(name: str) -> str:
    """In which fronts a scheme is: how often, at which sites, and at what saving and loss."""
    rows = []
    for front in results.fronts():
        plans = [p for p in front.points if _schemes(p) != {"multi_head"}]
        points = [point for point in plans if name in _schemes(point)]
        if points:
            sites = [
                f"{SITES[site]} {sum(name in p.sites.get(site, ()) for p in points)}"
                for site in results.SITES
                if any(name in p.sites.get(site, ()) for p in points)
            ]
            rows.append(
                [f"[{front.name}](../../{front.link})", f"{len(points)} of {len(plans)}",
                 ", ".join(sites), _range(f"{p.size / front.baseline - 1:+.1%}" for p in points),
                 _range(f"{p.change:+.4f}" for p in points)]
            )  # fmt: skip
    beside = "[All schemes at equal size](../../studies/equal-size.md)."
    if not rows:
        return f"In no front of ours. {beside}"
    titles = ["study", "points of its front", "sites, points", "parameters", "change of the loss"]
    return "\n\n".join(
        [
            "Points of the fronts of our studies that have it in some layer, from the smallest to "
            f"the largest, against the baseline. {beside}",
            table(titles, rows),
        ]
    )


def _schemes(point: results.Point) -> frozenset[str]:
    return frozenset().union(*point.sites.values())


def _range(texts: Iterable[str]) -> str:
    first, *rest = texts
    return f"{first} to {rest[-1]}" if rest and rest[-1] != first else first


def conversion(name: str) -> str:
    """Rows of the tables of conversions that are about a scheme."""
    parts = []
    for model, page, titles, left_out in CONVERTED:
        found = _table(page, *titles)
        kept = [title for title in found.titles if title != left_out]
        rows = [[escaped(row[t]) for t in kept] for row in found.rows
                if results.options_of(row["everywhere"])[0] == name]  # fmt: skip
        if rows:
            link = f"{LINKS[page]}#{results.anchor(found.heading)}"
            parts.append(f"Change of the loss in bits per token, [{model}]({link}):")
            parts.append(table(kept, rows))
    return "\n\n".join(parts)


def speed(name: str) -> str:
    """Rows of the tables of times that are about a scheme."""
    text = (results.ROOT / "docs/how-to/speed.md").read_text()
    parts = []
    for found in results.tables(text):
        rows = [[row[t] for t in found.titles] for row in found.rows if f"`{name}`" in row[""]]
        if rows:
            link = f"{LINKS['docs/how-to/speed.md']}#{results.anchor(found.heading)}"
            parts += [f"[{found.heading}]({link}):", table([*found.titles], rows)]
    return "\n\n".join(parts) or "Not among the measured ones."


def _table(page: str, *titles: str) -> results.Table:
    return results.table_with([*results.tables((results.ROOT / page).read_text())], *titles)


# All schemes at equal size


def equal_size_page() -> str:
    """All schemes on all studies, compared at equal parameters."""
    found = results.uniform_results()
    columns = sorted(found, key=lambda column: [c.study for c in found].index(column.study))
    cells = {column: results.by_size(found[column]) for column in columns}
    places = {place for cell in cells.values() for place in cell}
    sizes = sorted({size for size, scheme in places if scheme != results.MIXED})
    rows = []
    for size in sizes:
        schemes = [s for s in (*results.SCHEMES, results.MIXED) if (size, s) in places]
        for scheme in schemes:
            share = f"{size / results.STEPS:.0%}" if scheme == schemes[0] else ""
            name = f"*{scheme}*" if scheme == results.MIXED else f"`{scheme}`"
            changes = (_cell(cells[c].get((size, scheme)), c.digits) for c in columns)
            rows.append([share, name, *changes])
    titles = [
        f"[{c.study.replace('_', '_<wbr>')}]({_from_studies(c.link)}) {c.how}" for c in columns
    ]
    return "\n\n".join([HEAD, table(["size", "scheme", *titles], rows), TAIL])


def _cell(found: results.Result | None, digits: int) -> str:
    if found is None:
        return ""
    error = f" ±{found.error:.4f}" if found.error else ""
    return f"{found.change:+.{digits}f}{error}"


def _from_studies(link: str) -> str:
    return link.removeprefix("studies/") if link.startswith("studies/") else f"../{link}"


HEAD = """---
hide: [toc, navigation]
---

# All schemes at equal size

Change of the loss against each study's baseline, in bits per token; lower is better. Size is the
share of multi-head attention's parameters that attention has left, to the nearest sixteenth: plans
of one scheme everywhere that have the same stand together. *several schemes* is a plan of that
size, of a search or of its predictions, that mixes schemes."""
TAIL = """## How this table is made

By program, as the site is built, from the tables of [results](results.md), the `front.csv` beside
them and [convert and prune](../how-to/convert-and-prune.md#calibrate). Shares are counted on the
modules; of several plans the one nearest to the sixteenth is taken. An empty cell means that
nothing of that size was measured. Compare within a column only: columns differ in model, data and
training.

± is what the study states: in *multi30k_sensitivity* the largest distance of one of three seeds
from the mean, in the studies of record half of the 95 % interval of the change, in
*multi30k_grouped* and *demo* (from scratch) the standard error of a trial's mean over three seeds.
Cells without it are of one seed (*converted* ones of one trained model), so small differences mean
nothing. A warm start is a short fine-tuning of the converted baseline; *converted* means that
nothing was trained after the conversion."""
