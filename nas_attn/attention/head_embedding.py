"""What both forms of multiple head embeddings share: one projection, one vector a head."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from nas_attn.attention.base import Attention, CommonArguments, init_as_multi_head, init_output

EMBEDDING_STD = 0.02
"""Standard deviation of head embeddings at the start; the paper's is not known."""


class HeadEmbeddingAttention(Attention):
    """One query, one key and one value projection of width h, and 3n embeddings of width h.

    Keys and values of all heads are cached once: 2h numbers a token.

    Args:
        embed_dim: width of queries and of the output.
        num_heads: n; must divide `embed_dim`.
        kdim, vdim, dropout, bias: as in `Attention`.
    """

    def __init__(self, embed_dim: int, num_heads: int, **common: Unpack[CommonArguments]) -> None:
        super().__init__(embed_dim, num_heads, **common)
        self.k_proj = nn.Linear(self.kdim, self.head_dim, bias=self.has_bias)
        self.v_proj = nn.Linear(self.vdim, self.head_dim, bias=self.has_bias)
        self.q_proj = nn.Linear(embed_dim, self.head_dim, bias=self.has_bias)
        self.query_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.key_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.value_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        one_matrix = self.kdim == self.vdim == self.embed_dim
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            init_as_multi_head(projection, self.embed_dim, one_matrix=one_matrix)
        for embedding in (self.query_embedding, self.key_embedding, self.value_embedding):
            nn.init.normal_(embedding, std=EMBEDDING_STD)
        init_output(self.out_proj)

    def keys(self, key: Tensor) -> Tensor:
        projected: Tensor = self.k_proj(key)
        return projected[:, None]

    def values(self, value: Tensor) -> Tensor:
        projected: Tensor = self.v_proj(value)
        return projected[:, None]

    def cache_size(self) -> int:
        return 2 * self.head_dim
