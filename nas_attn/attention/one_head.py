"""What schemes of one narrow head share: its projections, and the cache of its keys and values."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from nas_attn.attention.base import Attention, CommonArguments, Projection, init_as_multi_head


class OneHeadAttention(Attention):
    """One query, one key and one value projection of width h, from which schemes make n heads.

    Keys and values are cached once: 2h numbers per token. Schemes call `reset_projections` in their
    own `reset_parameters`, once all their parameters are there.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        joined_dim: Width of what the output projection gets, `embed_dim` if left out.
        kdim, vdim, dropout, bias: As in `Attention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        joined_dim: int | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, joined_dim=joined_dim, **common)
        self.k_proj = Projection(self.kdim, self.head_dim, bias=self.has_bias)
        self.v_proj = Projection(self.vdim, self.head_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, self.head_dim, bias=self.has_bias)

    def reset_projections(self) -> None:
        """Draw the projections as multi-head attention draws those of a head."""
        one_matrix = self.kdim == self.vdim == self.embed_dim
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            init_as_multi_head(projection, self.embed_dim, one_matrix=one_matrix)

    def keys(self, key: Tensor) -> Tensor:
        """(B, S, kdim) to (B, 1, S, h)."""
        projected: Tensor = self.k_proj(key)
        return projected[:, None]  # (B, 1, S, h)

    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, 1, S, h)."""
        projected: Tensor = self.v_proj(value)
        return projected[:, None]  # (B, 1, S, h)

    def cache_size(self) -> int:
        """One key and one value."""
        return 2 * self.head_dim
