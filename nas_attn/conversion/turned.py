"""Attention whose queries and keys are turned by their positions, as rotary embeddings do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.attention.functional import attend
from nas_attn.attention.masks import merge_masks
from nas_attn.attention.observer import ObservedQuery


@dataclass(frozen=True)
class Turned:
    """An attention module for one call; `project` and `attend` as its own, but for the turning.

    Args:
        attention: Module whose heads have queries of their own.
        positions: Cosines and sines (B, T, h) of the call's tokens.
    """

    attention: Attention
    positions: tuple[Tensor, Tensor]

    def project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Turned keys, and values."""
        keys, values = self.attention.project(key, value)
        return self._turned(keys), values

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from a query (B, T, embed_dim) to turned keys and to values."""
        attention = self.attention
        if attention.observer is not None:
            attention.observer.on_attend(
                ObservedQuery(
                    query=query,
                    key_padding_mask=None,
                    attn_mask=attn_mask,
                    is_causal=is_causal,
                    query_padding_mask=attention.query_padding_mask,
                )
            )
        heads, weights = attend(
            self._turned(attention.queries(query)),
            keys,
            values,
            scale=attention.scale,
            mask=merge_masks(None, attn_mask),
            is_causal=is_causal,
            dropout=attention.dropout if attention.training else 0.0,
            need_weights=need_weights,
            implementation=attention.implementation,
        )
        joined = attention.mix_values(heads).transpose(1, 2).flatten(2)
        return attention.out_proj(joined), weights

    def _turned(self, states: Tensor) -> Tensor:
        """Queries or keys (B, n, T, h)."""
        cosine, sine = (t[:, None] for t in self.positions)
        first, second = states.chunk(2, dim=-1)
        turned: Tensor = states * cosine + torch.cat([-second, first], dim=-1) * sine
        return turned
