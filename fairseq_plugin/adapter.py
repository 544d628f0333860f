"""nas-attn attention behind the interface of fairseq's `MultiheadAttention`.

fairseq passes tensors as (time, batch, width) and keeps incremental state for the module; the
attention itself is batch-first and stateless.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from torch import Tensor, nn

from nas_attn.attention import Attention

IncrementalState = dict[str, dict[str, Tensor | None]]


@with_incremental_state
class FairseqAttention(nn.Module):
    """An attention scheme as fairseq's Transformer layers call it.

    Incremental decoding caches what the scheme's `keys` and `values` return: shared heads once.

    Args:
        attention: the scheme's module.
        encoder_decoder_attention: keys and values come from the encoder and never grow.
    """

    def __init__(self, attention: Attention, *, encoder_decoder_attention: bool = False) -> None:
        super().__init__()
        self.attention = attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.embed_dim = attention.embed_dim
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, shapes and returns are those of fairseq's `MultiheadAttention`.

        Raises:
            NotImplementedError: `before_softmax` is asked for.
        """
        if before_softmax:
            raise NotImplementedError("nas-attn attention does not return scores before softmax")
        buffer = {} if incremental_state is None else self._get_input_buffer(incremental_state)
        if static_kv and "prev_key" in buffer:
            keys, values = buffer["prev_key"], buffer["prev_value"]
            key_padding_mask = buffer["prev_key_padding_mask"]
        else:
            keys = self.attention.keys(key.transpose(0, 1))
            values = self.attention.values(value.transpose(0, 1))
            if "prev_key" in buffer:
                key_padding_mask = _join_padding(
                    buffer["prev_key_padding_mask"], key_padding_mask, buffer["prev_key"], keys
                )
                keys = torch.cat([buffer["prev_key"], keys], dim=2)
                values = torch.cat([buffer["prev_value"], values], dim=2)
        if incremental_state is not None:
            state = {
                "prev_key": keys,
                "prev_value": values,
                "prev_key_padding_mask": key_padding_mask,
            }
            self._set_input_buffer(incremental_state, state)
        output, weights = self.attention.attend(
            self.attention.queries(query.transpose(0, 1)),
            keys,
            values,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            need_weights=need_weights or need_head_weights,
        )
        if weights is not None:
            # (heads, batch, time, source) for each head, else (batch, time, source).
            weights = weights.transpose(0, 1) if need_head_weights else weights.mean(dim=1)
        return output.transpose(0, 1), weights

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Follow beam search: keep the cached hypotheses named by `new_order` (batch)."""
        buffer = self._get_input_buffer(incremental_state)
        if buffer:
            state = {
                name: None if cached is None else cached.index_select(0, new_order)
                for name, cached in buffer.items()
            }
            self._set_input_buffer(incremental_state, state)
        return incremental_state

    def _get_input_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Any]:
        state: dict[str, Any] | None = self.get_incremental_state(incremental_state, "attn_state")
        return {} if state is None else state

    def _set_input_buffer(
        self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]
    ) -> None:
        self.set_incremental_state(incremental_state, "attn_state", buffer)


def _join_padding(
    old: Tensor | None, new: Tensor | None, old_keys: Tensor, new_keys: Tensor
) -> Tensor | None:
    """Padding masks (batch, length) of cached and new keys, one after the other."""
    if old is None and new is None:
        return None
    if old is None:
        old = new_keys.new_zeros(old_keys.size(0), old_keys.size(2), dtype=torch.bool)
    if new is None:
        new = new_keys.new_zeros(new_keys.size(0), new_keys.size(2), dtype=torch.bool)
    return torch.cat([old.bool(), new.bool()], dim=1)
