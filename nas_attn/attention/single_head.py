"""Single-head attention: one narrow head, whose output stands in for those of all heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

from torch import Tensor

from nas_attn.attention.base import CommonArguments, init_output
from nas_attn.attention.effective import product_dimension
from nas_attn.attention.one_head import OneHeadAttention


@dataclass(frozen=True, kw_only=True)
class SingleHeadOptions:
    """Options of single-head attention."""

    narrow_output: bool = field(
        default=False,
        metadata={"help": "project the one head's output, not its copies for all heads"},
    )


class SingleHeadAttention(OneHeadAttention):
    """One head of width h = embed_dim / num_heads, its output repeated for every head.

    The baseline of the head-embedding paper: head embeddings of zero give this function, and the
    paper's "3nd more parameters than single-head attention" holds with W_O of embed_dim squared. Of
    those n blocks only the sum acts, so `narrow_output` gives the same functions with a W_O of h
    rows. Weights are returned as n equal maps.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        narrow_output: Whether to project the head itself, with (n - 1) * h * embed_dim fewer
            parameters.
        kdim, vdim, dropout, bias: As in `Attention`.
    """

    reference = "Xue and Aletras 2023, arXiv 2310.07911 (its single-head baseline)"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        narrow_output: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            joined_dim=embed_dim // num_heads if narrow_output else None,
            **common,
        )
        self.narrow_output = narrow_output
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_projections()
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        """(B, T, embed_dim) to (B, 1, T, h)."""
        projected: Tensor = self.q_proj(query)
        return projected[:, None]  # (B, 1, T, h)

    def mix_values(self, heads: Tensor) -> Tensor:
        return heads if self.narrow_output else heads.expand(-1, self.num_heads, -1, -1)

    def effective_parameters(self) -> int:
        """As multi-head attention with one head: only the sum of W_O's blocks acts."""
        scores = product_dimension(self.embed_dim + self.has_bias, self.kdim, self.head_dim)
        outputs = product_dimension(self.vdim, self.embed_dim, self.head_dim)
        return scores + outputs + self.embed_dim * self.has_bias
