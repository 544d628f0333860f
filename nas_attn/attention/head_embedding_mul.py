"""Multiple head embeddings, multiplied: heads scale one shared query, key and value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import Tensor

from nas_attn.attention.base import CommonArguments
from nas_attn.attention.effective import mixed_product_dimension, product_dimension
from nas_attn.attention.head_embedding import (
    EMBEDDING_STD,
    HeadEmbeddingAttention,
    HeadEmbeddingOptions,
)


@dataclass(frozen=True, kw_only=True)
class HeadEmbeddingMulOptions(HeadEmbeddingOptions):
    """Options of multiplied head embeddings."""

    plain_embedding: bool = field(
        default=False,
        metadata={"help": "multiply by the embedding e itself instead of by 1 + e"},
    )


class HeadEmbeddingMulAttention(HeadEmbeddingAttention):
    """Head i attends with q * f(e_i^Q) to k * f(e_i^K) and v * f(e_i^V); q, k and v are shared.

    f(e) = 1 + e, so embeddings of zero are single-head attention; which form the paper has is not
    known, so f(e) = e is the option `plain_embedding`, with embeddings that start around one.
    The factors of query and key meet in the score, q . diag(f(e_i^Q) f(e_i^K)) . k, so this is
    collaborative attention with a shared dimension of one head's width and
    m_i = f(e_i^Q) f(e_i^K): the key itself is cached once. The factor of the value scales head i's
    output.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`.
        plain_embedding: Whether f(e) = e.
        embedding_std: Deviation of the embeddings at the start, around zero or, if plain, one.
        kdim, vdim, dropout, bias: As in `Attention`.
    """

    reference = "Xue and Aletras 2023, arXiv 2310.07911, MHE-MUL"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        plain_embedding: bool = False,
        embedding_std: float = EMBEDDING_STD,
        **common: Unpack[CommonArguments],
    ) -> None:
        self.offset = 0.0 if plain_embedding else 1.0
        super().__init__(embed_dim, num_heads, embedding_std=embedding_std, **common)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            for embedding in (self.query_embedding, self.key_embedding, self.value_embedding):
                embedding.add_(1.0 - self.offset)

    def queries(self, query: Tensor) -> Tensor:
        mixing = (self.offset + self.query_embedding) * (self.offset + self.key_embedding)
        mixed: Tensor = self.q_proj(query)[:, None] * mixing[:, None]
        return mixed  # (B, n, T, h)

    def mix_values(self, heads: Tensor) -> Tensor:
        return heads * (self.offset + self.value_embedding)[:, None]  # (B, n, T, h)

    def effective_parameters(self) -> int:
        """Of e^Q and e^K only the product acts; W_O can undo e^V."""
        rows = self.embed_dim + self.has_bias
        scores = mixed_product_dimension(rows, self.kdim, self.num_heads, self.head_dim)
        outputs = product_dimension(self.vdim, self.num_heads * self.embed_dim, self.head_dim)
        return scores + outputs + self.embed_dim * self.has_bias
