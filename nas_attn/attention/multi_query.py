"""Multi-query attention: all heads share one key and one value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from nas_attn.attention.base import CommonArguments
from nas_attn.attention.grouped_query import GroupedQueryAttention


@dataclass(frozen=True, kw_only=True)
class MultiQueryOptions:
    """Multi-query attention has no options of its own."""


class MultiQueryAttention(GroupedQueryAttention):
    """Multi-query attention: grouped-query attention with one group.

    Takes the arguments of `Attention`.
    """

    reference = "Shazeer 2019, arXiv 1911.02150, section 3"

    def __init__(self, embed_dim: int, num_heads: int, **common: Unpack[CommonArguments]) -> None:
        super().__init__(embed_dim, num_heads, num_groups=1, **common)
