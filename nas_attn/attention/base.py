"""The contract of an attention scheme: three maps, attention, an output map.

Shape legend: B batch, T query length, S key length, n heads, g_k key heads, g_v value heads.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from nas_attn.attention.functional import attend, merge_masks
from nas_attn.errors import PlanError


class Attention(nn.Module):
    """Multi-headed attention whose heads may share weights.

    A scheme says how `queries`, `keys` and `values` are made; everything else is common. What an
    incremental decoder caches is exactly what `keys` and `values` return.

    Args:
        embed_dim: width of queries and of the output.
        num_heads: number of heads; must divide `embed_dim`.
        kdim: width of the keys' input, `embed_dim` if left out.
        vdim: width of the values' input, `embed_dim` if left out.
        dropout: probability of dropping an attention weight in training.
        bias: whether projections have biases.

    Raises:
        PlanError: `num_heads` does not divide `embed_dim`.
    """

    reference: ClassVar[str]
    """Paper and equation that the scheme follows."""

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
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise PlanError(f"{num_heads} heads do not divide a width of {embed_dim}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout = dropout
        self.scale = self.head_dim**-0.5
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    @abstractmethod
    def queries(self, query: Tensor) -> Tensor:
        """(B, T, embed_dim) to (B, n, T, key width)."""

    @abstractmethod
    def keys(self, key: Tensor) -> Tensor:
        """(B, S, kdim) to (B, g_k, S, key width)."""

    @abstractmethod
    def values(self, value: Tensor) -> Tensor:
        """(B, S, vdim) to (B, g_v, S, head width)."""

    @abstractmethod
    def cache_size(self) -> int:
        """Numbers that incremental decoding keeps for each token."""

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with projected queries, keys and values; masks as in `forward`.

        Returns:
            Output (B, T, embed_dim) and, if asked for, weights (B, n, T, S).
        """
        heads, weights = attend(
            queries,
            keys,
            values,
            scale=self.scale,
            mask=merge_masks(key_padding_mask, attn_mask),
            is_causal=is_causal,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        joined = heads.transpose(1, 2).flatten(2)  # (B, T, embed_dim)
        output: Tensor = self.out_proj(joined)
        return output, weights

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` to `key` and `value`, as batch-first `torch.nn.MultiheadAttention`.

        Args:
            query: (B, T, embed_dim).
            key: (B, S, kdim).
            value: (B, S, vdim).
            key_padding_mask: bool (B, S), true at keys to leave out.
            attn_mask: (T, S) or (B, n, T, S); bool, true where attention is not allowed, or float,
                added to the scores.
            is_causal: position t attends to positions 0..t. Replaces a causal `attn_mask`.
            need_weights: also return the weights of every head.

        Returns:
            Output (B, T, embed_dim) and, if asked for, weights (B, n, T, S); else None.
        """
        if is_causal and (key_padding_mask is not None or attn_mask is not None):
            square = torch.ones(query.size(1), key.size(1), dtype=torch.bool, device=query.device)
            causal = square.triu(1)
            if attn_mask is None:
                attn_mask = causal
            elif attn_mask.dtype == torch.bool:
                attn_mask = attn_mask | causal
            else:
                attn_mask = attn_mask.masked_fill(causal, float("-inf"))
            is_causal = False
        return self.attend(
            self.queries(query),
            self.keys(key),
            self.values(value),
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
            need_weights=need_weights,
        )

    def split_heads(self, joined: Tensor) -> Tensor:
        """(B, T, n * width) to (B, n, T, width)."""
        batch, time, width = joined.shape
        heads = joined.view(batch, time, self.num_heads, width // self.num_heads)
        return heads.transpose(1, 2)


def init_projection(projection: nn.Linear, gain: float = 1.0) -> None:
    """Xavier-uniform weights, as fairseq initialises attention; biases are left alone."""
    nn.init.xavier_uniform_(projection.weight, gain=gain)
