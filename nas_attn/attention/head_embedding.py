"""What both forms of multiple head embeddings share: one projection, one vector a head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import nn

from nas_attn.attention.base import CommonArguments, init_output
from nas_attn.attention.one_head import OneHeadAttention
from nas_attn.errors import PlanError

EMBEDDING_STD = 0.5
"""Deviation of head embeddings at the start. The paper's is not known; with small ones heads start
alike and part late (measured in studies/README.md)."""


@dataclass(frozen=True, kw_only=True)
class HeadEmbeddingOptions:
    """Options of both forms."""

    embedding_std: float = field(
        default=EMBEDDING_STD,
        metadata={"help": f"deviation of head embeddings at the start ({EMBEDDING_STD})"},
    )


class HeadEmbeddingAttention(OneHeadAttention):
    """One query, one key and one value projection of width h, and 3n embeddings of width h.

    Keys and values of all heads are cached once: 2h numbers per token.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        embedding_std: Deviation of the embeddings at the start; larger ones set heads apart.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: `embedding_std` is negative.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        embedding_std: float = EMBEDDING_STD,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(embed_dim, num_heads, **common)
        if embedding_std < 0:
            raise PlanError(f"embedding_std must not be negative, but is {embedding_std}")
        self.embedding_std = embedding_std
        self.query_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.key_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.value_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.reset_projections()
        for embedding in (self.query_embedding, self.key_embedding, self.value_embedding):
            nn.init.normal_(embedding, std=self.embedding_std)
        init_output(self.out_proj)
