"""The registry of attention schemes: one line each."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nas_attn.attention.base import Attention
from nas_attn.attention.collaborative import CollaborativeAttention, CollaborativeOptions
from nas_attn.attention.grouped_head import GroupedHeadAttention, GroupedHeadOptions
from nas_attn.attention.grouped_query import GroupedQueryAttention, GroupedQueryOptions
from nas_attn.attention.head_embedding_add import (
    HeadEmbeddingAddAttention,
    HeadEmbeddingAddOptions,
)
from nas_attn.attention.head_embedding_mul import (
    HeadEmbeddingMulAttention,
    HeadEmbeddingMulOptions,
)
from nas_attn.attention.latent import LatentAttention, LatentOptions
from nas_attn.attention.multi_head import MultiHeadAttention, MultiHeadOptions
from nas_attn.attention.multi_query import MultiQueryAttention, MultiQueryOptions
from nas_attn.attention.none import NoAttention, NoAttentionOptions
from nas_attn.attention.reduced_key import ReducedKeyAttention, ReducedKeyOptions
from nas_attn.attention.shared_key_value import SharedKeyValueAttention, SharedKeyValueOptions
from nas_attn.attention.single_head import SingleHeadAttention, SingleHeadOptions
from nas_attn.errors import PlanError
from nas_attn.literals import did_you_mean


@dataclass(frozen=True)
class Scheme:
    """An attention scheme: its module and the dataclass of the options it adds to `Attention`."""

    module: type[Attention]
    options: type

    def check_options(self, options: Mapping[str, object]) -> None:
        """Refuse options that the scheme does not have or whose type is wrong.

        Raises:
            PlanError: names the option and what it may be.
        """
        hints = typing.get_type_hints(self.options)
        known = [field.name for field in fields(self.options)]
        for name, value in options.items():
            if name not in known:
                offer = f"; it has {', '.join(known)}" if known else "; it has no options"
                raise PlanError(f"unknown option {name!r}{offer}")
            if not _fits(value, hints[name]):
                raise PlanError(f"{name} must be {_describe(hints[name])}, but is {value!r}")


SCHEMES: dict[str, Scheme] = {
    "multi_head": Scheme(MultiHeadAttention, MultiHeadOptions),
    "collaborative": Scheme(CollaborativeAttention, CollaborativeOptions),
    "head_embedding_add": Scheme(HeadEmbeddingAddAttention, HeadEmbeddingAddOptions),
    "head_embedding_mul": Scheme(HeadEmbeddingMulAttention, HeadEmbeddingMulOptions),
    "grouped_query": Scheme(GroupedQueryAttention, GroupedQueryOptions),
    "grouped_head": Scheme(GroupedHeadAttention, GroupedHeadOptions),
    "multi_query": Scheme(MultiQueryAttention, MultiQueryOptions),
    "single_head": Scheme(SingleHeadAttention, SingleHeadOptions),
    "reduced_key": Scheme(ReducedKeyAttention, ReducedKeyOptions),
    "shared_key_value": Scheme(SharedKeyValueAttention, SharedKeyValueOptions),
    "none": Scheme(NoAttention, NoAttentionOptions),
    "latent": Scheme(LatentAttention, LatentOptions),
}
"""Every scheme by the name that plans, flags, architectures and search spaces use."""


def get_scheme(name: str) -> Scheme:
    """Look a scheme up.

    Raises:
        PlanError: there is no scheme of that name.
    """
    if name not in SCHEMES:
        offer = did_you_mean(name, SCHEMES) or f"; schemes are {', '.join(SCHEMES)}"
        raise PlanError(f"unknown scheme {name!r}{offer}")
    return SCHEMES[name]


def build_attention(
    scheme: str,
    embed_dim: int,
    num_heads: int,
    *,
    kdim: int | None = None,
    vdim: int | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    **options: object,
) -> Attention:
    """Build the attention module of a scheme.

    Args:
        scheme: Name in `SCHEMES`.
        embed_dim: Width of queries and of the output.
        num_heads: Number of heads; must divide `embed_dim`.
        kdim, vdim: Widths of the keys' and values' inputs, `embed_dim` if left out.
        dropout: Probability of dropping an attention weight in training.
        bias: Whether projections have biases.
        options: The scheme's own options.

    Returns:
        A module called as `module(query, key, value)` with tensors (batch, time, width).

    Raises:
        PlanError: the scheme or an option is unknown, or a value does not fit.
    """
    found = get_scheme(scheme)
    try:
        found.check_options(options)
        build: Any = found.module
        module: Attention = build(
            embed_dim, num_heads, kdim=kdim, vdim=vdim, dropout=dropout, bias=bias, **options
        )
    except PlanError as error:
        raise PlanError(f"{scheme}: {error}") from None
    return module


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in hint.__args__)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(_describe(p) for p in hint.__args__ if p is not types.NoneType)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names[hint]
