"""Multi-head attention: every head has its own queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from nas_attn.attention.base import CommonArguments
from nas_attn.attention.grouped_query import GroupedQueryAttention


@dataclass(frozen=True, kw_only=True)
class MultiHeadOptions:
    """Multi-head attention has no options of its own."""


class MultiHeadAttention(GroupedQueryAttention):
    """Multi-head attention, the baseline: grouped-query attention with a group for each head.

    Parameters, initialisation and outputs are those of fairseq's own `MultiheadAttention`.
    Takes the arguments of `Attention`.
    """

    reference = "Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2"

    def __init__(self, embed_dim: int, num_heads: int, **common: Unpack[CommonArguments]) -> None:
        super().__init__(embed_dim, num_heads, num_groups=num_heads, **common)
