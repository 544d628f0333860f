"""Multi-head attention with narrower queries and keys, and values of full width."""

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
    init_projection,
    split_heads,
)
from nas_attn.attention.effective import product_dimension
from nas_attn.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class ReducedKeyOptions:
    """Options of attention with reduced keys."""

    key_dim: int | None = field(
        default=None,
        metadata={
            "help": "width of the queries and keys of all heads together; about a quarter of the "
            "width by default"
        },
    )


class ReducedKeyAttention(Attention):
    """Multi-head attention whose heads have queries and keys of width key_dim / num_heads.

    The concatenated baseline that collaborative attention is compared with. The scale stays
    sqrt(embed_dim / num_heads), as in the authors' translation code; values keep their width. At
    key_dim = embed_dim this is multi-head attention.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim` and `key_dim`.
        key_dim: Width of queries and keys, all heads together. By default a quarter of each head's
            width, at least one.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: `num_heads` does not divide `key_dim`.
    """

    reference = "Cordonnier, Loukas and Jaggi 2020, arXiv 2006.16362, section 5 (baseline)"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        key_dim: int | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if key_dim is None:
            key_dim = num_heads * max(1, self.head_dim // 4)
        if key_dim < 1 or key_dim % num_heads:
            raise PlanError(f"{num_heads} heads do not divide a key_dim of {key_dim}")
        self.key_dim = key_dim
        self.k_proj = Projection(self.kdim, key_dim, bias=self.has_bias)
        self.v_proj = Projection(self.vdim, embed_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, key_dim, bias=self.has_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        one_matrix = self.kdim == self.vdim == self.embed_dim
        # Narrow keys are drawn larger, so that scores start as wide as those of wide keys.
        gain = 2**-0.5 if one_matrix and self.key_dim == self.embed_dim else 1.0
        init_projection(self.k_proj, gain)
        init_as_multi_head(self.v_proj, self.embed_dim, one_matrix=one_matrix)
        init_projection(self.q_proj, gain)
        init_output(self.out_proj)

    def queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)

    def keys(self, key: Tensor) -> Tensor:
        return split_heads(self.k_proj(key), self.num_heads)

    def values(self, value: Tensor) -> Tensor:
        return split_heads(self.v_proj(value), self.num_heads)

    def cache_size(self) -> int:
        return self.key_dim + self.embed_dim

    def effective_parameters(self) -> int:
        """As multi-head attention, with heads of two widths."""
        key_width = self.key_dim // self.num_heads
        scores = product_dimension(self.embed_dim + self.has_bias, self.kdim, key_width)
        outputs = product_dimension(self.vdim, self.embed_dim, self.head_dim)
        return self.num_heads * (scores + outputs) + self.embed_dim * self.has_bias
