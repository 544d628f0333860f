"""Multi-head attention: every head has its own queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nas_attn.attention.base import Attention, init_projection


@dataclass(frozen=True, kw_only=True)
class MultiHeadOptions:
    """Multi-head attention has no options of its own."""


class MultiHeadAttention(Attention):
    """Multi-head attention with separate heads, the baseline.

    Parameters, initialisation and outputs are those of fairseq's own `MultiheadAttention`.
    Takes the arguments of `Attention`.
    """

    reference = "Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, kdim=kdim, vdim=vdim, dropout=dropout, bias=bias)
        self.k_proj = nn.Linear(self.kdim, embed_dim, bias=bias)
        self.v_proj = nn.Linear(self.vdim, embed_dim, bias=bias)
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # fairseq: the three projections count as one matrix when their inputs are equally wide.
        gain = 2**-0.5 if self.kdim == self.vdim == self.embed_dim else 1.0
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            init_projection(projection, gain)
        init_projection(self.out_proj)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def queries(self, query: Tensor) -> Tensor:
        return self.split_heads(self.q_proj(query))

    def keys(self, key: Tensor) -> Tensor:
        return self.split_heads(self.k_proj(key))

    def values(self, value: Tensor) -> Tensor:
        return self.split_heads(self.v_proj(value))

    def cache_size(self) -> int:
        return 2 * self.embed_dim
