"""Scaled dot-product attention over heads that may share keys and values.

`attend` is the one place that decides how attention is computed; schemes only say what is attended.

Shape legend: B batch, n query heads, T query length, S key length, g_k key heads, g_v value heads,
d_k key width, d_v value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FOLD_MAX_LENGTH = 256
"""Longest key sequence for which one batched product over all heads beats padding widths to use
the fused kernel (CPU, float32)."""


def merge_masks(key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Join a padding mask and an attention mask into one that broadcasts to (B, n, T, S).

    Args:
        key_padding_mask: bool (B, S), true at keys to leave out.
        attn_mask: (T, S) or (B, n, T, S); bool, true where attention is *not* allowed, or float,
            added to the scores. (The conventions of `torch.nn.MultiheadAttention`.)

    Returns:
        None; a bool tensor, true where attention is *allowed*; or a float tensor to add.
    """
    allowed = None if key_padding_mask is None else ~key_padding_mask.bool()[:, None, None, :]
    if attn_mask is None:
        return allowed
    if attn_mask.dim() == 2:
        attn_mask = attn_mask[None, None]
    if attn_mask.dtype == torch.bool:
        return ~attn_mask if allowed is None else allowed & ~attn_mask
    return attn_mask if allowed is None else attn_mask.masked_fill(~allowed, float("-inf"))


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend with every query head; heads of keys and values are shared evenly among query heads.

    A row that may attend to nothing yields zeros.

    Args:
        queries: (B, n, T, d_k).
        keys: (B, g_k, S, d_k), g_k divides n.
        values: (B, g_v, S, d_v), g_v divides n.
        scale: factor of the scores before the softmax.
        mask: what `merge_masks` returns.
        is_causal: position t attends to keys 0..t; needs T = S and no `mask`.
        dropout: probability of dropping an attention weight.
        need_weights: also return the weights.

    Returns:
        Head outputs (B, n, T, d_v), and the weights (B, n, T, S) after dropout or None.
    """
    key_width, value_width, length = keys.size(-1), values.size(-1), keys.size(2)
    if need_weights or (key_width != value_width and length <= FOLD_MAX_LENGTH):
        if is_causal:
            square = torch.ones(queries.size(2), length, dtype=torch.bool, device=keys.device)
            mask = square.tril()
        return _attend_explicitly(queries, keys, values, scale, mask, dropout, need_weights)
    width = max(key_width, value_width)
    output = F.scaled_dot_product_attention(
        _widen(queries, width),
        _expand_heads(_widen(keys, width), queries.size(1)),
        _expand_heads(_widen(values, width), queries.size(1)),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
    )
    return output[..., :value_width], None


def _attend_explicitly(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    mask: Tensor | None,
    dropout: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    scores = _grouped_product(queries * scale, keys.transpose(-1, -2))  # (B, n, T, S)
    if mask is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        if mask.dtype == torch.bool:
            nowhere = ~mask.any(dim=-1, keepdim=True)
            scores = scores.masked_fill(~(mask | nowhere), float("-inf"))
        else:
            nowhere = (mask == float("-inf")).all(dim=-1, keepdim=True)
            scores = scores + mask.masked_fill(nowhere, 0.0)
        # Softmax over -inf alone would be NaN, in the gradient too: open such rows, then zero them.
        weights = torch.softmax(scores, dim=-1).masked_fill(nowhere, 0.0)
    weights = F.dropout(weights, dropout) if dropout > 0.0 else weights
    return _grouped_product(weights, values), weights if need_weights else None


def _grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """(B, n, T, x) times (B, g, x, y) -> (B, n, T, y): the n / g heads of a group become rows.

    A broadcast matmul would copy `right` once for every head of its group.
    """
    batch, heads, length, inner = left.shape
    groups = right.size(1)
    rows = left.reshape(batch, groups, heads // groups * length, inner)
    return (rows @ right).view(batch, heads, length, right.size(-1))


def _expand_heads(shared: Tensor, num_heads: int) -> Tensor:
    batch, groups, length, width = shared.shape
    if groups == num_heads:
        return shared
    if groups == 1:
        return shared.expand(batch, num_heads, length, width)
    return shared.repeat_interleave(num_heads // groups, dim=1)


def _widen(tensor: Tensor, width: int) -> Tensor:
    """Pad the last axis with zeros, which change neither scores nor the values kept."""
    missing = width - tensor.size(-1)
    return F.pad(tensor, (0, missing)) if missing else tensor
