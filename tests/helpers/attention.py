"""One module of every scheme, in the variants that tests of attention go through.

A new scheme adds its cases to the tables below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import SCHEMES, Attention, build_attention
from nas_attn.attention.thresholds import BUILT_IN
from nas_attn.conversion import RecordedCall

Options = dict[str, object]
Choose = Callable[[int, int], Options]

CASES: list[tuple[str, str, Choose]] = [
    ("multi_head", "", lambda d, n: {}),
    ("collaborative", "default", lambda d, n: {}),
    ("collaborative", "odd", lambda d, n: {"shared_dim": 5}),
    ("collaborative", "one", lambda d, n: {"shared_dim": 1}),
    ("collaborative", "head-width", lambda d, n: {"shared_dim": d // n}),
    ("collaborative", "content", lambda d, n: {"shared_dim": 4, "content_bias": True}),
    ("collaborative", "heads", lambda d, n: {"shared_dim": d, "mixing_init": "heads"}),
    ("collaborative", "prunable", lambda d, n: {"dim_threshold": 0.5}),
    ("collaborative", "one-value-head", lambda d, n: {"shared_dim": 3, "num_value_heads": 1}),
    (
        "collaborative",
        "grouped-values",
        lambda d, n: {"content_bias": True, "num_value_heads": largest_divisor(n)},
    ),
    ("head_embedding_add", "", lambda d, n: {}),
    ("head_embedding_mul", "", lambda d, n: {}),
    ("head_embedding_mul", "plain", lambda d, n: {"plain_embedding": True}),
    ("grouped_query", "default", lambda d, n: {}),
    ("grouped_query", "divisor", lambda d, n: {"num_groups": largest_divisor(n)}),
    (
        "grouped_query",
        "value-groups",
        lambda d, n: {"num_groups": n, "num_value_groups": largest_divisor(n)},
    ),
    ("grouped_query", "tied", lambda d, n: {"num_groups": largest_divisor(n), "tied": True}),
    ("grouped_head", "", lambda d, n: {}),
    ("multi_query", "", lambda d, n: {}),
    ("single_head", "", lambda d, n: {}),
    ("single_head", "narrow", lambda d, n: {"narrow_output": True}),
    ("reduced_key", "default", lambda d, n: {}),
    ("reduced_key", "wide", lambda d, n: {"key_dim": d + n}),
    ("shared_key_value", "", lambda d, n: {}),
    ("none", "", lambda d, n: {"output_bias": True}),
    ("latent", "default", lambda d, n: {}),
    ("latent", "odd", lambda d, n: {"latent_dim": 3}),
]
"""(scheme, name, options for embed_dim d and n heads)."""

SPECIAL_CASES: dict[str, tuple[int, Options]] = {
    "multi_head": (4, {}),
    "collaborative": (4, {"shared_dim": 16, "mixing_init": "heads"}),
    "head_embedding_add": (1, {}),
    "head_embedding_mul": (1, {}),
    "grouped_query": (4, {"num_groups": 4}),
    "grouped_head": (4, {}),
    "multi_query": (1, {}),
    "single_head": (1, {}),
    "reduced_key": (4, {"key_dim": 16}),
    "shared_key_value": (4, {}),
    "none": (4, {"output_bias": True}),
    "latent": (4, {"latent_dim": 16}),
}
"""Heads and options with which a scheme computes multi-head attention from its weights."""

EMBED_DIM, NUM_HEADS = 16, 4
every_case = pytest.mark.parametrize(
    ("scheme", "choose"),
    [(scheme, choose) for scheme, _, choose in CASES],
    ids=["-".join(filter(None, case[:2])) for case in CASES],
)


def largest_divisor(number: int) -> int:
    """The largest proper divisor, or one."""
    return max([k for k in range(1, number) if number % k == 0], default=1)


def set_thresholds(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Change the thresholds of CPUs by which implementations are chosen, for a test."""
    changed = replace(BUILT_IN[0], **changes)
    monkeypatch.setattr("nas_attn.attention.thresholds._given", [changed])


def make(
    scheme: str,
    options: Options | None = None,
    embed_dim: int = EMBED_DIM,
    num_heads: int = NUM_HEADS,
    **sizes: object,
) -> Attention:
    torch.manual_seed(5)
    module = build_attention(scheme, embed_dim, num_heads, **sizes, **(options or {}))
    module = module.double().eval()
    for name, parameter in module.named_parameters():
        # No parameter may be zero or nearly so, or its term goes untested.
        if parameter.dim() == 1 or "embedding" in name or not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return module


def inputs(
    batch: int, time: int, source: int, embed_dim: int = EMBED_DIM, kdim: int | None = None
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * time + 100 * source)
    query = torch.randn(batch, time, embed_dim, dtype=torch.double, generator=generator)
    width = kdim or embed_dim
    return query, torch.randn(batch, source, width, dtype=torch.double, generator=generator)


@torch.no_grad()
def distance(one: Attention, other: Attention, call: RecordedCall) -> float:
    """How far the outputs of two modules are apart at most."""
    outputs = [
        m(call.query, call.key, call.value, call.key_padding_mask, need_weights=False)[0]
        for m in (one, other)
    ]
    return float((outputs[0] - outputs[1]).abs().max())


def schemes_but_long(*often: str) -> list[Any]:
    """All schemes, slow; those that are not named are long as well."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, marks=[slow] if name in often else [slow, pytest.mark.long])
        for name in SCHEMES
    ]
