"""Multiple head embeddings, added: heads shift one shared query, key and value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nas_attn.attention.effective import product_dimension
from nas_attn.attention.head_embedding import HeadEmbeddingAttention, HeadEmbeddingOptions


@dataclass(frozen=True, kw_only=True)
class HeadEmbeddingAddOptions(HeadEmbeddingOptions):
    """Options of added head embeddings."""


class HeadEmbeddingAddAttention(HeadEmbeddingAttention):
    """Head i attends with q + e_i^Q to k + e_i^K and v + e_i^V; q, k and v are shared.

    Its score of key j is

        (q + e_i^Q) . (k_j + e_i^K) = (q + e_i^Q) . k_j + (q + e_i^Q) . e_i^K

    and the second term does not depend on j, so the softmax over j cancels it: the key embedding is
    dead. It is kept, for the paper's count of 3 n h embedding numbers, but left out of the graph
    and with `requires_grad` off: its gradient is rounding noise, which Adam would scale up into a
    drift of the scores, and distributed training waits for the gradient of every trainable
    parameter. As weights sum to one, v_j + e_i^V comes out as v + e_i^V: the value embedding is a
    shift of the output, W_O^i e_i^V, which the output bias can make as well. It is added after
    attention and so, other than the paper's, not shaken by attention dropout.

    Heads share one bilinear form, and differ in which keys they like, not in what they compare.

    Takes the arguments of `HeadEmbeddingAttention`.
    """

    reference = "Xue and Aletras 2023, arXiv 2310.07911, MHE-ADD"

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.key_embedding.requires_grad_(False)

    def queries(self, query: Tensor) -> Tensor:
        """(B, T, embed_dim) to (B, 1, T, h), before the heads' shifts."""
        projected: Tensor = self.q_proj(query)
        return projected[:, None]  # (B, 1, T, h)

    def query_shifts(self) -> Tensor:
        return self.query_embedding

    def mix_values(self, heads: Tensor) -> Tensor:
        return heads + self.value_embedding[:, None]  # (B, n, T, h)

    def effective_parameters(self) -> int:
        """One bilinear form and n key biases in its column space; one output shift."""
        scores = product_dimension(self.embed_dim + self.num_heads, self.kdim, self.head_dim)
        outputs = product_dimension(self.vdim, self.num_heads * self.embed_dim, self.head_dim)
        return scores + outputs + self.embed_dim
