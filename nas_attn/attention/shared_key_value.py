"""Shared keys and values: in every head one projection serves as both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from nas_attn.attention.base import CommonArguments
from nas_attn.attention.grouped_query import GroupedQueryAttention


@dataclass(frozen=True, kw_only=True)
class SharedKeyValueOptions:
    """Attention with shared keys and values has no options of its own."""


class SharedKeyValueAttention(GroupedQueryAttention):
    """Multi-head attention in which the key of a token is also its value.

    Keys and values are made of one tensor by one projection, so only keys are cached: `values`
    returns tensors of width zero. It is tied grouped-query attention with a group for each head.

    Takes the arguments of `Attention`.

    Raises:
        PlanError: `kdim` and `vdim` differ.
    """

    reference = "Xue and Aletras 2023, arXiv 2310.07911 (its shared key-value baseline)"

    def __init__(self, embed_dim: int, num_heads: int, **common: Unpack[CommonArguments]) -> None:
        super().__init__(embed_dim, num_heads, num_groups=num_heads, tied=True, **common)
