"""Attention with keys and values of unequal widths, some rows of one head at a time.

torch's fused kernels want keys as wide as values. Here scores are made block by block from plain
matrix products, so that a block stays in the processor's cache, and made again for the gradients
(Dao et al. 2022, arXiv 2205.14135, do so within one kernel): memory grows with the length, not with
its square, and causal attention skips the blocks that it may not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas_attn.attention.masks import causal_mask, rows_without_keys

BLOCK_ROWS = 256
"""Rows of a block: enough for matrix products at full speed, few enough for the cache (CPU)."""


def attend_blockwise(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """Attend block by block; arguments and result as of `functional.attend`.

    Differentiable once, but not for the mask.
    """
    apply: Any = _Blockwise.apply
    output: Tensor = apply(queries, keys, values, mask, is_causal, scale)
    return output


class _Block(NamedTuple):
    """Where the rows of a block lie, and what they may see."""

    rows: tuple[int, int, slice]
    keys: tuple[int, int, slice]
    values: tuple[int, int, slice]
    hidden: Tensor | None
    """Bool, true at keys that a row may not see; or float, added to the scores."""
    blind: Tensor | None
    """Bool, true for rows that may see nothing."""
    later: Tensor | None
    """Bool, true at later positions, for the last keys of a causal block."""


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        batch, heads, time, _ = queries.shape
        output = queries.new_empty(batch, time, heads, values.size(-1)).transpose(1, 2)
        for block in _blocks(queries, keys, values, mask, is_causal):
            weights = _weights(queries, keys, block, scale)
            torch.mm(weights, values[block.values], out=output[block.rows])
        ctx.save_for_backward(queries, keys, values, mask, output)
        ctx.is_causal, ctx.scale = is_causal, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, mask, output = ctx.saved_tensors
        to_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        to_keys = torch.zeros(keys.shape, dtype=keys.dtype, device=keys.device)
        to_values = torch.zeros(values.shape, dtype=values.dtype, device=values.device)
        # What the softmax takes off every gradient of a row: their mean under the row's weights.
        mean = (gradient * output).sum(dim=-1, keepdim=True)
        for block in _blocks(queries, keys, values, mask, ctx.is_causal):
            weights = _weights(queries, keys, block, ctx.scale)
            to_values[block.values].addmm_(weights.t(), gradient[block.rows])
            to_scores = gradient[block.rows] @ values[block.values].t()
            to_scores.sub_(mean[block.rows]).mul_(weights).mul_(ctx.scale)
            torch.mm(to_scores, keys[block.keys], out=to_queries[block.rows])
            to_keys[block.keys].addmm_(to_scores.t(), queries[block.rows])
        return to_queries, to_keys, to_values, None, None, None


def _weights(queries: Tensor, keys: Tensor, block: _Block, scale: float) -> Tensor:
    """Weights (rows, keys) of a block."""
    scores = (queries[block.rows] * scale) @ keys[block.keys].t()
    if block.later is not None:
        scores[:, -block.later.size(1) :].masked_fill_(block.later, float("-inf"))
    if block.hidden is None:
        return torch.softmax(scores, dim=-1)
    if block.hidden.dtype == torch.bool:
        scores.masked_fill_(block.hidden, float("-inf"))
    else:
        scores.add_(block.hidden)
    weights = torch.softmax(scores, dim=-1)
    return weights if block.blind is None else weights.masked_fill_(block.blind, 0.0)


def _blocks(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool
) -> Iterator[_Block]:
    batch, heads, time, _ = queries.shape
    size = min(BLOCK_ROWS, time)
    later = causal_mask(size, size, queries.device) if is_causal else None
    hidden = blind = None
    if mask is not None:
        none_left = rows_without_keys(mask)
        hidden = ~mask if mask.dtype == torch.bool else mask
        hidden = hidden.expand(batch, heads, time, -1)
        blind = none_left.expand(batch, heads, time, 1) if none_left.any() else None
    for item in range(batch):
        for head in range(heads):
            key_head, value_head = (head * t.size(1) // heads for t in (keys, values))
            for start in range(0, time, size):
                stop = min(start + size, time)
                rows, seen = slice(start, stop), slice(stop if is_causal else keys.size(2))
                square = slice(stop - start)
                yield _Block(
                    rows=(item, head, rows),
                    keys=(item, key_head, seen),
                    values=(item, value_head, seen),
                    hidden=None if hidden is None else hidden[item, head, rows],
                    blind=None if blind is None else blind[item, head, rows],
                    later=None if later is None else later[square, square],
                )
