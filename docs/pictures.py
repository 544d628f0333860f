"""Pictures of schemes, drawn from what their modules compute.

Which weights belong to which head is asked of the module itself: the queries, keys, values and
outputs of head i depend on a weight where its gradient is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

import torch
from torch import Tensor

WIDTH, HEADS = 256, 4
"""Shape of the modules that are drawn."""
PICTURED: Mapping[str, Mapping[str, Any]] = {
    "grouped_head": {"kept_heads": 2},
    "none": {"output_bias": True},
}
"""Options of schemes that are multi-head attention, or nothing at all, with their defaults."""

Heads = frozenset[int]


@dataclass(frozen=True)
class Part:
    """Queries, keys, values or outputs.

    Args:
        name: Which of them.
        shared: Numbers of weights by the heads that use them.
        again: Whether these are the weights of a part above.
    """

    name: str
    shared: Mapping[Heads, int]
    again: bool = False


@dataclass(frozen=True)
class Structure:
    """What of a module its heads share.

    Args:
        heads: Heads that there are, of `HEADS`.
        parts: Queries, keys, values, outputs.
        bias: Weights of the output's bias.
        dead: Weights on which nothing depends.
        cache: Numbers per token that decoding keeps.
    """

    heads: int
    parts: tuple[Part, ...]
    bias: int
    dead: int
    cache: int

    @property
    def parameters(self) -> int:
        """All weights, each counted once."""
        counted = [sum(part.shared.values()) for part in self.parts if not part.again]
        return sum(counted) + self.bias + self.dead


@cache
def structure(name: str) -> Structure:
    """Ask a scheme's module which weights each head uses."""
    from nas_attn.attention import build_attention

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = build_attention(name, WIDTH, HEADS, **PICTURED.get(name, {}))
        inputs = torch.randn(1, 3, WIDTH)
        tensors = dict(_tensors_of_heads(module, inputs))
    parts, seen = [], set[str]()
    for part, of_heads in tensors.items():
        used = _used(module, of_heads)
        new = {weight: mask for weight, mask in used.items() if weight not in seen}
        parts.append(Part(part, _by_heads(new or used), again=bool(used) and not new))
        seen |= used.keys()
    parts.append(Part("outputs", _outputs(module, len(tensors["values"]))))
    dead = sum(p.numel() for n, p in module.named_parameters()
               if n not in seen and not n.startswith("out_proj"))  # fmt: skip
    bias = module.out_proj.bias.numel()
    return Structure(module.num_heads, tuple(parts), bias, dead, module.cache_size())


def _tensors_of_heads(module: Any, inputs: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
    """Queries, keys and values of each head."""
    heads = module.num_heads
    queries, shifts = module.queries(inputs), module.query_shifts()
    if shifts is not None:
        queries = queries + shifts[None, :, None]
    keys, values = module.keys(inputs), module.values(inputs)
    values = values if values.size(-1) else keys
    attended = max(queries.size(1), values.size(1))
    mixed = module.mix_values(values.repeat_interleave(attended // values.size(1), dim=1))
    for part, tensor in (("queries", queries), ("keys", keys), ("values", mixed)):
        groups = heads // tensor.size(1)
        yield part, [tensor[:, head // groups] for head in range(heads)]


def _used(module: Any, of_heads: list[Tensor]) -> dict[str, Tensor]:
    """For each parameter that is used, (heads, numbers): which head uses which number."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    for tensor in of_heads:
        if not tensor.requires_grad:  # of no weight
            continue
        seen = torch.autograd.grad(
            (tensor * torch.randn_like(tensor)).sum(),
            [*named.values()],
            retain_graph=True,
            allow_unused=True,
        )
        for (name, parameter), gradient in zip(named.items(), seen, strict=True):
            used = torch.zeros_like(parameter) if gradient is None else gradient
            rows[name].append(used.flatten() != 0)
    masks = {name: torch.stack(row) for name, row in rows.items() if row}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _by_heads(used: Mapping[str, Tensor]) -> dict[Heads, int]:
    counts: dict[Heads, int] = {}
    for mask in used.values():
        codes = sum(row.long() << head for head, row in enumerate(mask))
        for code, number in enumerate(torch.bincount(codes).tolist()):
            heads = frozenset(head for head in range(len(mask)) if code >> head & 1)
            counts[heads] = counts.get(heads, 0) + number
    return {heads: count for heads, count in counts.items() if heads and count}


def _outputs(module: Any, heads: int) -> dict[Heads, int]:
    """Columns of the output projection by head."""
    weight, everyone = module.out_proj.weight, frozenset(range(heads))
    joined = weight.size(1) // module.head_dim
    owners = [everyone if joined == 1 else frozenset([place]) for place in range(joined)]
    return {owner: weight.numel() // joined for owner in owners}


def has_one_map(module: Any) -> bool:
    """Whether all heads look at the same places."""
    queries = module.queries(torch.zeros(1, 1, module.embed_dim))
    return queries.size(1) == 1 and module.query_shifts() is None


# Drawing

LEFT, COLUMN, ROW = 78, 130, 24
STYLE = (
    "text{font:12px sans-serif;fill:#222}.s{fill:#9cc3ea}.h{fill:#f4c27a}.c{fill:#8fd0a0}"
    ".a{fill:none;stroke:#777;stroke-dasharray:4 3}.r{fill:none;stroke:#999}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.s{fill:#2d5f94}.h{fill:#8a5a12}"
    ".c{fill:#2c6b40}}"
)


def picture(name: str) -> str:
    """A scheme as SVG: who shares what, how much of multi-head attention's numbers is left."""
    found, whole = structure(name), structure("multi_head")
    shapes: list[str] = []
    for head in range(HEADS):
        gone = " (pruned)" if head >= found.heads else ""
        shapes.append(_text(LEFT + COLUMN * (head + 0.5), 14, f"head {head + 1}{gone}", "middle"))
    y = 24
    for part in found.parts:
        drawn, height = _part(part, found.heads, y)
        shapes += [_text(0, y + height / 2 + 4, part.name), *drawn]
        y += height + 8
    if found.dead:
        shapes += [_box("a", LEFT, y, COLUMN * HEADS, f"{found.dead:,} without effect")]
        y += ROW + 8
    for title, number, of in (
        ("parameters", found.parameters, whole.parameters),
        ("cache", found.cache, whole.cache),
    ):
        shapes += [_text(0, y + 16, title), *_bar(y, number, of)]
        y += ROW + 8
    return _svg(name, y, [*shapes, *_legend(y)])


def _part(part: Part, heads: int, y: int) -> tuple[list[str], int]:
    """Boxes of a part, one line for what is shared by several heads and one for what is not."""
    if part.again:
        return [_box("a", LEFT, y, COLUMN * heads, "the keys once more")], ROW
    if not part.shared:
        return [_box("a", LEFT, y, COLUMN * heads, "there are none")], ROW
    lines = [{}, {}]  # type: list[dict[Heads, int]]
    for owners, count in part.shared.items():
        lines[len(owners) == 1 and heads > 1][owners] = count
    shapes, height = [], 0
    for kind, line in zip("sh", lines, strict=True):
        for owners, count in line.items():
            x, span = LEFT + COLUMN * min(owners), COLUMN * len(owners)
            shapes.append(_box(kind, x, y + height, span, f"{count:,}"))
        height += ROW if line else 0
    return shapes, height


def _bar(y: int, number: int, of: int) -> list[str]:
    full = COLUMN * HEADS
    text = f"{number:,} of {of:,} ({number / of:.0%})"
    return [
        f'<rect class="c" x="{LEFT}" y="{y}" width="{full * number / of:.0f}" height="{ROW - 2}"/>',
        f'<rect class="r" x="{LEFT}" y="{y}" width="{full}" height="{ROW - 2}"/>',
        _text(LEFT + full / 2, y + 15, text, "middle"),
    ]


def _legend(y: int) -> list[str]:
    shapes, x = [], LEFT
    for kind, text in (("s", "shared by heads"), ("h", "of one head"), ("c", "left of multi-head")):
        shapes.append(f'<rect class="{kind}" x="{x}" y="{y + 4}" width="12" height="12"/>')
        shapes.append(_text(x + 18, y + 14, text))
        x += 150
    return shapes


def _box(kind: str, x: float, y: float, width: float, text: str) -> str:
    rect = f'x="{x + 2:.0f}" y="{y}" width="{width - 4:.0f}" height="{ROW - 2}" rx="3"'
    return f'<rect class="{kind}" {rect}/>' + _text(x + width / 2, y + 15, text, "middle")


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(name: str, y: int, shapes: list[str]) -> str:
    size = f'viewBox="0 0 {LEFT + COLUMN * HEADS + 4} {y + 22}"'
    title = f"{name}: weights that heads share, weights of one head, parameters and cache"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{title}</title>'
    return "\n".join([head, f"<style>{STYLE}</style>", *shapes, "</svg>\n"])
