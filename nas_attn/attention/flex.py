"""Attention with keys and values of unequal widths by torch's FlexAttention.

One kernel is compiled for each kind of call (type, widths, heads, masked or causal, with gradients
or not) and serves all lengths (Dong et al. 2024, arXiv 2412.05496). Compiling takes half a minute.
Only numbers of heads are counted against `torch._dynamo.config.recompile_limit`, beyond which torch
computes all scores at once instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nas_attn.attention.call import AttentionCall, is_eager

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Positions of a block of a causal mask; blocks that nobody sees are left out."""

NARROWEST = 16
"""Smallest width that the kernel for CUDA multiplies."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def attend_flex(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    """Attend; arguments and result as of `functional.attend`, for calls without `flex_refusal`."""
    batch, heads, time, _ = queries.shape
    grouped = 1 < keys.size(1) == values.size(1) < heads
    if not grouped:
        keys, values = (_expand(tensor, heads) for tensor in (keys, values))
    blocks = _causal_blocks(time, keys.device) if call.is_causal else None
    mask = call.mask
    if mask is not None:
        mask = mask.expand(batch, heads, time, keys.size(2))
    attend = _compiled(_Kind.of(queries, keys, values, call, grouped))
    output: Tensor = attend(queries, keys, values, mask, blocks, call.scale, grouped)
    return output


def flex_refusal(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> str:
    """Why FlexAttention cannot do what is asked; empty if it can."""
    if call.dropout > 0.0:
        return "drops no weights"
    if call.mask is not None and call.mask.requires_grad:
        return "does not differentiate masks"
    if not is_eager():
        return "is compiled by itself, and only for eager execution"
    if {queries.dtype, keys.dtype, values.dtype} not in [{dtype} for dtype in TYPES]:
        return "needs float32, bfloat16 or float16"
    if min(keys.size(-1), values.size(-1)) < NARROWEST:
        return f"needs heads of a width of {NARROWEST} at least"
    if keys.device.type not in ("cpu", "cuda"):
        return "needs a CPU or CUDA"
    needs_gradients = any(tensor.requires_grad for tensor in (queries, keys, values))
    if keys.device.type == "cpu" and torch.is_grad_enabled() and needs_gradients:
        return "has no gradients on a CPU"
    if keys.device.type == "cpu" and call.mask is not None:
        return "takes no masks on a CPU"  # torch 2.13 writes C++ that does not compile
    return ""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What calls have in common that one compiled function serves."""

    dtype: torch.dtype
    key_width: int
    value_width: int
    mask: torch.dtype | None
    is_causal: bool
    grouped: bool
    with_gradients: bool

    @classmethod
    def of(
        cls, queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall, grouped: bool
    ) -> _Kind:
        learned = any(tensor.requires_grad for tensor in (queries, keys, values))
        return cls(
            dtype=keys.dtype,
            key_width=keys.size(-1),
            value_width=values.size(-1),
            mask=None if call.mask is None else call.mask.dtype,
            is_causal=call.is_causal,
            grouped=grouped,
            with_gradients=learned and torch.is_grad_enabled(),
        )


@cache
def _compiled(kind: _Kind) -> Any:
    """A function for calls of a kind, with code of its own: torch counts recompilations by code."""
    code = _attend.__code__.replace()
    return torch.compile(FunctionType(code, _attend.__globals__, _attend.__name__), dynamic=True)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    blocks: BlockMask | None,
    scale: float,
    grouped: bool,
) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    def masked(score: Tensor, item: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        assert mask is not None
        entry = mask[item, head, row, key]
        if mask.dtype == torch.bool:
            return torch.where(entry, score, float("-inf"))
        return score + entry

    return flex_attention(
        queries,
        keys,
        values,
        score_mod=None if mask is None else masked,
        block_mask=blocks,
        scale=scale,
        enable_gqa=grouped,
    )


def _earlier(item: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return row >= key


@lru_cache(maxsize=8)
def _causal_blocks(length: int, device: torch.device) -> BlockMask:
    """Blocks of keys that a block of rows sees: those before it whole, and its own in part.

    torch's own way of finding out looks at every pair of positions.
    """
    from torch.nn.attention.flex_attention import BlockMask

    count = (length + BLOCK - 1) // BLOCK
    with torch.inference_mode(False):  # kept tensors must do for gradients too
        numbers = torch.arange(count, dtype=torch.int32, device=device)
        partly, in_part = torch.ones_like(numbers), torch.zeros_like(numbers).repeat(count, 1)
        in_part[:, 0] = numbers
        wholly, whole = numbers.clone(), numbers.repeat(count, 1)
        if length % BLOCK:  # none of the last row's blocks is whole
            partly[-1], in_part[-1], wholly[-1] = count, numbers, 0
        return BlockMask.from_kv_blocks(
            partly[None, None],
            in_part[None, None],
            wholly[None, None],
            whole[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=_earlier,
            seq_lengths=(length, length),
        )


def _expand(shared: Tensor, num_heads: int) -> Tensor:
    batch, groups, length, width = shared.shape
    if groups in (1, num_heads):
        return shared.expand(batch, num_heads, length, width)
    return shared.repeat_interleave(num_heads // groups, dim=1)
