"""Masks of attention: those of PyTorch's callers joined into one, and what it leaves nothing of.

Shape legend: B batch, n query heads, T query length, S key length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_masks(key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Join a padding mask and an attention mask into one that broadcasts to (B, n, T, S).

    Args:
        key_padding_mask: Bool (B, S), true at keys to leave out.
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


def with_causal_mask(attn_mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask that also leaves later positions out.

    Args:
        attn_mask: (T, S) or (B, n, T, S); bool, true where attention is *not* allowed, or float,
            added to the scores.
        query: (B, T, width).
        key: (B, S, width).
    """
    causal = causal_mask(query.size(1), key.size(1), query.device)
    if attn_mask is None:
        return causal
    if attn_mask.dtype == torch.bool:
        return attn_mask | causal
    return attn_mask.masked_fill(causal, float("-inf"))


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bool (queries, keys), true where attention is *not* allowed: at later positions."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(1)


def rows_without_keys(mask: Tensor) -> Tensor:
    """Bool (..., T, 1), true for rows of a merged mask that may attend to nothing."""
    allowed = mask if mask.dtype == torch.bool else mask != float("-inf")
    return ~allowed.any(dim=-1, keepdim=True)
