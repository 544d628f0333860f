"""Grouped-query attention: groups of heads share keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

from torch import Tensor

from nas_attn.attention.base import (
    Attention,
    CommonArguments,
    Projection,
    init_as_multi_head,
    init_output,
    split_heads,
)
from nas_attn.attention.effective import product_dimension
from nas_attn.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class GroupedQueryOptions:
    """Options of grouped-query attention."""

    num_groups: int | None = field(
        default=None,
        metadata={
            "help": "groups of heads that share keys and values; half as many as heads by default"
        },
    )


class GroupedQueryAttention(Attention):
    """Grouped-query attention: n heads of queries, g heads of keys and values.

    Head i attends with its own query to the keys and values of group i // (n / g). With g = n this
    is multi-head attention, with g = 1 multi-query attention.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        num_groups: Number g of groups; must divide `num_heads`. Half of them by default, one if
            they are odd.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: `num_groups` does not divide `num_heads`.
    """

    reference = "Ainslie et al. 2023, arXiv 2305.13245, section 2.2"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_groups: int | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if num_groups is None:
            num_groups = 1 if num_heads % 2 else num_heads // 2
        if num_groups < 1 or num_heads % num_groups:
            raise PlanError(f"num_groups must divide {num_heads} heads, but is {num_groups}")
        self.num_groups = num_groups
        self.k_proj = Projection(self.kdim, num_groups * self.head_dim, bias=self.has_bias)
        self.v_proj = Projection(self.vdim, num_groups * self.head_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, embed_dim, bias=self.has_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        one_matrix = self.kdim == self.vdim == self.embed_dim
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            init_as_multi_head(projection, self.embed_dim, one_matrix=one_matrix)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)

    def keys(self, key: Tensor) -> Tensor:
        return split_heads(self.k_proj(key), self.num_groups)

    def values(self, value: Tensor) -> Tensor:
        return split_heads(self.v_proj(value), self.num_groups)

    def cache_size(self) -> int:
        return 2 * self.num_groups * self.head_dim

    def effective_parameters(self) -> int:
        """The query bias acts as a row of W_Q; the key bias is dead; b_O absorbs the value bias."""
        width = self.num_heads // self.num_groups * self.embed_dim
        rows = width + self.num_heads // self.num_groups * self.has_bias
        scores = product_dimension(rows, self.kdim, self.head_dim)
        outputs = product_dimension(self.vdim, width, self.head_dim)
        return self.num_groups * (scores + outputs) + self.embed_dim * self.has_bias
