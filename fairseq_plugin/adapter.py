"""nas-attn attention behind the interface of fairseq's `MultiheadAttention`.

fairseq passes tensors as (time, batch, width) and keeps incremental state for the module; the
attention itself is batch-first and stateless.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.attention.cache import Cache
from nas_attn.attention.folded import Folded, fold
from nas_attn.attention.multi_head import MultiHeadAttention
from nas_attn.errors import PlanError

from .beams import follow

logger = logging.getLogger(__name__)

STOCK = re.compile(r"in_proj_(?:weight|bias)|(?:q|k|v|out)_proj\.(?:weight|bias)")
"""Weights of fairseq's own attention, of all versions."""

IncrementalState = dict[str, dict[str, Any]]

SourceCache = Literal["keys_values", "output"]
"""What decoding keeps of the source: keys and values for every layer, or the encoder's output once
for all of them, which takes less memory and a little more time."""
SOURCE_CACHES: tuple[SourceCache, ...] = get_args(SourceCache)


@dataclass
class Decoded:
    """What one attention module keeps while a batch of hypotheses is decoded."""

    keys: Cache
    values: Cache
    padding: Tensor | None
    """Bool or None, (rows, length), true at keys to leave out."""
    beams: int = 1
    """Hypotheses that share a row: those of a sentence share what comes from the encoder."""


def _last(time: int, mask: Tensor | None) -> Tensor | None:
    """A mask's last places, which are the queries': with `--cross-self-attention` the encoder's
    output stands before them."""
    return None if mask is None else mask[:, -time:]


@with_incremental_state
class FairseqAttention(nn.Module):
    """An attention scheme as fairseq's Transformer layers call it.

    Incremental decoding caches what the scheme's `keys` and `values` return: shared heads once.
    Keys that come from the encoder may have fewer rows than queries, each for as many hypotheses
    side by side (see `PlannedEncoder.reorder_encoder_out`).

    Args:
        attention: The scheme's module.
        encoder_decoder_attention: Whether keys and values come from the encoder and never grow.
        decoder_self_attention: Whether a square `attn_mask` is fairseq's mask of future tokens, so
            that they need not be looked at.
    """

    # What the decorator gives it.
    get_incremental_state: Callable[..., Any]
    set_incremental_state: Callable[..., Any]

    def __init__(
        self,
        attention: Attention,
        *,
        encoder_decoder_attention: bool = False,
        decoder_self_attention: bool = False,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.decoder_self_attention = decoder_self_attention
        self.source_cache: SourceCache = "keys_values"
        self.query_padding_mask: Tensor | None = None
        """Bool or None, (batch, time): queries that are padding, where keys come from elsewhere."""
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
        time, batch, width = query.shape
        query = query.transpose(0, 1)
        need_weights = need_weights or need_head_weights
        folded = self._folded(incremental_state)
        if folded is not None:
            assert key is not None
            source = key.transpose(0, 1)
            output, weights = folded.attend(
                query.reshape(source.size(0), -1, width),  # as in _attend
                source,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
            )
        else:
            if incremental_state is None:
                keys, values = self._project(key, value)
            else:
                decoded = self._decode(
                    incremental_state,
                    key,
                    value,
                    key_padding_mask,
                    hypotheses=batch,
                    static=static_kv,
                )
                keys, values = decoded.keys.tokens, decoded.values.tokens
                key_padding_mask = decoded.padding
            if self.attention.wants_query_padding:
                of_queries = self.query_padding_mask if static_kv else key_padding_mask
                self.attention.query_padding_mask = _last(time, of_queries)
            output, weights = self._attend(
                query, keys, values, key_padding_mask, attn_mask, need_weights
            )
        output = output.reshape(batch, time, width).transpose(0, 1)  # (time, batch, width)
        if weights is None:
            return output, None
        weights = torch.unflatten(weights, 2, (-1, time))  # (rows, heads, beams, time, source)
        weights = weights.transpose(1, 2).flatten(0, 1)  # (batch, heads, time, source)
        # (heads, batch, time, source) for each head, else (batch, time, source).
        return output, weights.transpose(0, 1) if need_head_weights else weights.mean(dim=1)

    def _attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        padding: Tensor | None,
        attn_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from (batch, time, width); to attention, hypotheses that share keys are so many
        more queries."""
        is_causal = (
            self.decoder_self_attention
            and attn_mask is not None
            and attn_mask.size(0) == attn_mask.size(1)
            and padding is None
        )
        return self.attention.attend(
            query.reshape(keys.size(0), -1, query.size(2)),  # (rows, beams * time, width)
            keys,
            values,
            key_padding_mask=padding,
            attn_mask=None if is_causal else attn_mask,
            is_causal=is_causal,
            need_weights=need_weights,
        )

    def _folded(self, incremental_state: IncrementalState | None) -> Folded | None:
        """What attends to the encoder's output as it is, where that is what decoding keeps.

        fairseq passes the output at every step, in the order of the hypotheses.
        """
        if incremental_state is None or not self.encoder_decoder_attention:
            return None
        kept = self.get_incremental_state(incremental_state, "attn_state")
        if kept is None and self._keeps_output():
            kept = fold(self.attention)
            self.set_incremental_state(incremental_state, "attn_state", kept)
        return kept if isinstance(kept, Folded) else None

    def _keeps_output(self) -> bool:
        if self.attention.observer is not None:  # which looks at keys and values
            return False
        return self.source_cache == "output" and self.attention.cache_size() > 0

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Take weights of fairseq's own attention where this one is `multi_head`.

        Raises:
            PlanError: the weights are of fairseq's attention, but the scheme is another one.
        """
        prefix = f"{name}."
        stock = stock_weights(state_dict, prefix)
        if not stock:
            return
        if type(self.attention) is not MultiHeadAttention:
            raise PlanError(
                f"{name} holds weights of fairseq's own attention, but the plan chooses another "
                "scheme there: convert the checkpoint first, with nas-attn convert CHECKPOINT "
                "--plan PLAN --out FILE"
            )
        for key, part in stock.items():
            for ours, tensor in our_weights(part, state_dict.pop(key)).items():
                state_dict[f"{prefix}{ours}"] = tensor

    def _project(self, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor]:
        assert key is not None and value is not None
        key_rows = key.transpose(0, 1)
        value_rows = key_rows if value is key else value.transpose(0, 1)
        return self.attention.project(key_rows, value_rows)

    def _decode(
        self,
        incremental_state: IncrementalState,
        key: Tensor | None,
        value: Tensor | None,
        padding: Tensor | None,
        *,
        hypotheses: int,
        static: bool,
    ) -> Decoded:
        """What is kept of the tokens so far, those of this step among them."""
        decoded = self._decoded(incremental_state)
        if decoded is None:
            assert key is not None
            keys, values = self._project(key, value)
            beams = hypotheses // key.size(1)
            decoded = Decoded(Cache(keys), Cache(values), padding, beams=beams)
            self.set_incremental_state(incremental_state, "attn_state", decoded)
        elif not static:
            self._continue(decoded, key, value, padding)
        return decoded

    def _continue(
        self, decoded: Decoded, key: Tensor | None, value: Tensor | None, padding: Tensor | None
    ) -> None:
        keys, values = self._project(key, value)
        decoded.padding = _join_padding(decoded.padding, padding, decoded.keys.tokens, keys)
        decoded.keys.append(keys)
        decoded.values.append(values)

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Follow beam search: keep the cached hypotheses named by `new_order` (batch)."""
        decoded = self._decoded(incremental_state)
        if decoded is None:
            return incremental_state
        rows, decoded.beams = follow(new_order, decoded.beams)
        decoded.keys.reorder(rows)
        decoded.values.reorder(rows)
        if decoded.padding is not None:
            decoded.padding = decoded.padding.index_select(0, rows)
        return incremental_state

    def _decoded(self, incremental_state: IncrementalState | None) -> Decoded | None:
        decoded = self.get_incremental_state(incremental_state, "attn_state")
        return decoded if isinstance(decoded, Decoded) else None

    def _get_input_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Any]:
        """What fairseq's layers look for: cached keys, values and padding, by its names."""
        decoded = self._decoded(incremental_state)
        if decoded is None:
            return {}
        return {
            "prev_key": decoded.keys.tokens,
            "prev_value": decoded.values.tokens,
            "prev_key_padding_mask": decoded.padding,
        }

    def _set_input_buffer(
        self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]
    ) -> None:
        keys, values = buffer["prev_key"], buffer["prev_value"]
        assert keys is not None and values is not None
        # Caches write in place.
        own = Cache(keys.clone()), Cache(values.clone())
        decoded = Decoded(*own, buffer.get("prev_key_padding_mask"))
        self.set_incremental_state(incremental_state, "attn_state", decoded)


def stock_weights(state_dict: dict[str, Tensor], prefix: str) -> dict[str, str]:
    """Keys of the weights of a module of fairseq's own attention, and what they are in it."""
    parts = {key: key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
    return {key: part for key, part in parts.items() if STOCK.fullmatch(part)}


def our_weights(part: str, tensor: Tensor) -> dict[str, Tensor]:
    """What a weight of fairseq's own attention is in a `FairseqAttention` of `multi_head`."""
    if not part.startswith("in_proj_"):
        return {f"attention.{part}": tensor}
    # Before fairseq 0.9 one matrix made queries, keys and values.
    kind = part.removeprefix("in_proj_")
    thirds = zip("qkv", tensor.chunk(3), strict=False)
    return {f"attention.{side}_proj.{kind}": rows for side, rows in thirds}


def warn_of_stock_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Say once for a model what the state of an optimiser is worth to it."""
    names = [n for n, module in model.named_modules() if isinstance(module, FairseqAttention)]
    if any(stock_weights(state_dict, f"{name}.") for name in names):
        logger.warning(
            "these are weights of fairseq's own model, whose parameters are in another order: "
            "training goes on from them with --finetune-from-model or --reset-optimizer only"
        )


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
