"""Attention straight to an encoder's output: queries and outputs take over the maps of it.

A key is k = W_K y + b_K and a value v = W_V y + b_V of a source token y. The score q k is
(W_K^T q) y and a constant, which the softmax does not see; averaged values are W_V times averaged
tokens, and b_V. So heads can attend to one head of source tokens, and all layers of a decoder to
the same ones: `kdim` numbers a source token are kept, instead of keys and values for every layer.
Nothing is lost but time, where to fold queries is more work than to make keys and values.

The idea is that of Graef 2025, arXiv 2503.05840.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_attn.attention.base import Attention
from nas_attn.attention.functional import attend_as_called
from nas_attn.attention.masks import rows_without_keys


@dataclass(frozen=True)
class Folded:
    """An attention module whose queries and outputs take over what makes its keys and values."""

    attention: Attention
    key_maps: Tensor
    """(g_k, key width, kdim)."""
    value_maps: Tensor
    """(g_v, kdim, value width)."""
    value_bias: Tensor
    """(g_v, 1, value width)."""

    def attend(
        self,
        query: Tensor,
        source: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from a query (B, T, embed_dim) to source tokens (B, S, kdim).

        Returns:
            What `Attention.attend` returns for the keys and values of the source.
        """
        attention = self.attention
        call = attention.call_of(key_padding_mask=key_padding_mask, need_weights=need_weights)
        queries, shifts = attention.queries(query), attention.query_shifts()
        if shifts is not None:
            queries = queries + shifts[:, None]
        folded = _map_groups(queries, self.key_maps)  # (B, n, T, kdim)
        tokens = source[:, None]
        averages, weights = attend_as_called(folded, tokens, tokens, call)
        heads = _map_groups(averages, self.value_maps)  # (B, n, T, value width)
        shared = heads.size(1) // len(self.value_bias)
        bias = self.value_bias.repeat_interleave(shared, dim=0)  # (n, 1, value width)
        if call.mask is not None:  # who attends to nothing gets no bias either
            bias = bias * ~rows_without_keys(call.mask)
        return attention.joined(attention.mix_values(heads + bias), weights)


def fold(attention: Attention) -> Folded:
    """Maps of an attention module, by what it makes of unit vectors and of zero.

    They take as long to make as keys and values of `kdim` tokens. Later changes of the module's
    weights do not reach them.
    """
    key_maps, _ = _affine(attention.keys, attention)
    value_maps, value_bias = _affine(attention.values, attention)
    if not value_maps.size(-1):  # the keys are the values
        value_maps, value_bias = _affine(attention.keys, attention)
    return Folded(attention, key_maps.transpose(1, 2), value_maps, value_bias)


def _affine(make: Callable[[Tensor], Tensor], attention: Attention) -> tuple[Tensor, Tensor]:
    """Matrix (heads, kdim, width) and bias (heads, 1, width) of what makes keys or values."""
    weight = attention.out_proj.weight
    bias = make(weight.new_zeros(1, 1, attention.kdim))[0]
    units = torch.eye(attention.kdim, dtype=weight.dtype, device=weight.device)
    return make(units[None])[0] - bias, bias


def _map_groups(heads: Tensor, maps: Tensor) -> Tensor:
    """(B, n, T, x) by (g, x, y) to (B, n, T, y): n / g heads side by side have one map."""
    batch, num_heads, time, width = heads.shape
    rows = heads.reshape(batch, len(maps), num_heads // len(maps) * time, width)
    mapped = torch.einsum("bgtx,gxy->bgty", rows, maps)
    return mapped.reshape(batch, num_heads, time, maps.size(-1))
