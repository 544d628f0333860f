"""Scaled dot-product attention over heads that may share keys and values.

`attend` is the one place that decides how attention is computed; schemes only say what is
attended. Each way of computing it is an *implementation*. All are exact: they differ in the order
of operations, in time and in memory. `choose_implementation` picks the fastest by shapes, device
and type.

Shape legend: B batch, n query heads, T query length, S key length, g_k key heads, g_v value heads,
d_k key width, d_v value width.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_attn._deprecated import renamed_argument, renamed_names
from nas_attn.attention.blockwise import attend_blockwise
from nas_attn.attention.call import (
    IMPLEMENTATIONS,
    AttentionCall,
    Implementation,
    is_eager,
    lengths_are_open,
)
from nas_attn.attention.flex import attend_flex, flex_refusal
from nas_attn.attention.fused import attend_fused, attend_unpadded, attend_with_rows
from nas_attn.attention.masks import causal_mask, rows_without_keys
from nas_attn.attention.thresholds import thresholds_for

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionCall",
    "Implementation",
    "attend",
    "attend_as_called",
    "choose_implementation",
]

__getattr__ = renamed_names(
    __name__,
    {"Form": "Implementation", "FORMS": "IMPLEMENTATIONS", "choose_form": "choose_implementation"},
)

MAX_KEY_BIAS_SPREAD = 80.0
"""Largest spread of a head's key bias for which `shared_scores` keeps its precision: e^-80 is the
least share of a weight that can be lost, and float32 and bfloat16 hold e^-87."""


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    shifts: Tensor | None = None,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    need_weights: bool = False,
    implementation: Implementation | None = None,
    form: Implementation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with every query head; heads of keys and values are shared evenly among query heads.

    A row that may attend to nothing yields zeros.

    Args:
        queries: (B, n, T, d_k); (B, 1, T, d_k) with `shifts`.
        keys: (B, g_k, S, d_k), g_k divides n; one head with `shifts`.
        values: (B, g_v, S, d_v), g_v divides n; one head with `shifts`.
        scale: Factor of the scores before the softmax.
        shifts: (n, d_k), added to the one query to give that of each head.
        mask: Result of `merge_masks`, which broadcasts to (B, n, T, S).
        is_causal: Whether position t attends to keys 0..t; needs T = S and no `mask`.
        dropout: Probability of dropping an attention weight.
        need_weights: Whether to return the weights too.
        implementation: Way of computing it; the fastest by `choose_implementation` if left out.
        form: Former name of `implementation`.

    Returns:
        Head outputs (B, n, T, d_v), and the weights (B, n, T, S) after dropout or None.

    Raises:
        ValueError: the implementation does not do what is asked.
    """
    call = AttentionCall(
        scale=scale,
        shifts=shifts,
        mask=mask,
        is_causal=is_causal,
        dropout=dropout,
        need_weights=need_weights,
    )
    if form is not None:
        implementation = renamed_argument("form", "implementation", form, implementation)
    return attend_as_called(queries, keys, values, call, implementation)


def attend_as_called(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    call: AttentionCall,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same as `attend`, with all but the tensors in one.

    Raises:
        ValueError: The implementation does not do what is asked.
    """
    if implementation is None:
        implementation = choose_implementation(queries, keys, values, call)
    else:
        refusal = _refusal(implementation, queries, keys, values, call)
        if refusal:
            raise ValueError(f"the attention implementation {implementation} {refusal}")
    return _attend_by(implementation, queries, keys, values, call)


def _attend_by(
    implementation: Implementation,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    call: AttentionCall,
) -> tuple[Tensor, Tensor | None]:
    """Attend by an implementation that is known to do what is asked."""
    if implementation == "shared_scores":
        return _attend_with_shared_scores(queries, keys, values, call), None
    if call.shifts is not None:
        queries = queries + call.shifts[:, None]  # (B, n, T, d_k)
    if implementation == "explicit":
        return _attend_explicitly(queries, keys, values, call)
    if implementation == "blockwise":
        how = (call.mask, call.is_causal, call.scale)
        return attend_blockwise(queries, keys, values, *how), None
    if implementation == "flex":
        return attend_flex(queries, keys, values, call), None
    kernels = {"rows": attend_with_rows, "unpadded": attend_unpadded}
    return kernels.get(implementation, attend_fused)(queries, keys, values, call), None


def choose_implementation(
    queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
) -> Implementation:
    """The fastest implementation that does what is asked without losing precision.

    Where one becomes faster than another is measured: see `nas_attn.attention.thresholds`. What
    looks at numbers or is differentiated by hand is left to eager execution.
    """
    if call.need_weights:
        return "explicit"
    tensors = (queries, keys, values)
    table = thresholds_for(keys.device, keys.dtype)
    num_queries, num_keys = queries.size(2), keys.size(2)
    num_heads = queries.size(1) if call.shifts is None else call.shifts.size(0)
    least = table.shared_scores_min_queries
    if (
        is_eager()
        and call.shifts is not None
        and least is not None
        and num_queries >= least
        and queries.size(0) * num_heads * num_queries * num_keys * keys.size(-1)
        >= table.shared_scores_min_work
        and not _refusal("shared_scores", *tensors, call)
    ):
        return "shared_scores"
    if keys.size(-1) == values.size(-1):
        groups = math.lcm(keys.size(1), values.size(1))
        # Kernels want as many heads of keys as of values; in a step, to copy some costs the most.
        if num_queries == 1 and any(1 < shared.size(1) < groups for shared in (keys, values)):
            return "explicit"
        several = table.one_head if groups == 1 else table.grouped_heads
        stacked = num_heads > groups and (several == "rows" or num_queries == 1)
        return "rows" if stacked and not _refusal("rows", *tensors, call) else "fused"
    # An exported graph serves all lengths, so this choice may not depend on the input's.
    few = not lengths_are_open() and num_queries * num_keys <= table.explicit_max_scores
    if few or (call.dropout > 0.0 and keys.device.type == "cpu"):
        return "explicit"
    preferred = table.unequal_widths
    if preferred == "blockwise" and not is_eager():
        return "fused"
    return "fused" if _refusal(preferred, *tensors, call) else preferred


def _refusal(
    implementation: Implementation,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    call: AttentionCall,
) -> str:
    """Why an implementation cannot do what is asked; empty if it can."""
    if implementation == "absorbed":
        return "is for latent attention alone"
    if implementation == "explicit":
        return ""
    if call.need_weights:
        return "returns no weights"
    if implementation == "fused":
        return ""
    if implementation in ("unpadded", "flex"):
        if keys.size(-1) == values.size(-1):
            return "needs values of another width than keys"
        return flex_refusal(queries, keys, values, call) if implementation == "flex" else ""
    mask = call.mask
    if implementation == "rows":
        if keys.size(-1) != values.size(-1):
            return "needs values as wide as keys"
        row_masks = mask is not None and (mask.size(1) > 1 or mask.size(2) > 1)
        return "needs a mask that is one for all rows" if call.is_causal or row_masks else ""
    if call.dropout > 0.0:
        return "drops no weights"
    if mask is not None and mask.requires_grad:
        return "does not differentiate masks"
    if implementation == "shared_scores":
        if call.shifts is None:
            return "needs one query that heads shift"
        if mask is not None and mask.size(1) > 1:
            return "needs a mask that is one for all heads"
        return "needs more range than float16 has" if keys.dtype == torch.float16 else ""
    whole = {queries.dtype, keys.dtype, values.dtype} in ({torch.float32}, {torch.float64})
    return "" if whole else "needs float32 or float64"


def _attend_explicitly(
    queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor | None]:
    if lengths_are_open():
        fewer_keys = keys.size(1) < queries.size(1)
    else:
        fewer_keys = keys.numel() < queries.numel()
    if fewer_keys:
        keys = keys * call.scale
    else:
        queries = queries * call.scale
    scores = _grouped_product(queries, keys.transpose(-1, -2))  # (B, n, T, S)
    mask = call.mask
    if call.is_causal:
        mask = ~causal_mask(queries.size(2), keys.size(2), keys.device)[None, None]
    if mask is None:
        weights = _softmax(scores)
    else:
        nowhere = rows_without_keys(mask)
        # Softmax over -inf alone would be NaN, in the gradient too: open such rows, then zero them.
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~(mask | nowhere), float("-inf"))
        else:
            scores = scores + mask.masked_fill(nowhere, 0.0)
        weights = _softmax(scores).masked_fill(nowhere, 0.0)
    weights = F.dropout(weights, call.dropout) if call.dropout > 0.0 else weights
    return _grouped_product(weights, values), weights if call.need_weights else None


def _softmax(scores: Tensor) -> Tensor:
    """Over keys; where the scores are, if nobody needs them: fresh memory costs more than this."""
    kept = torch.is_grad_enabled() or torch.is_autocast_enabled(scores.device.type)
    if kept or not is_eager():
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, out=scores)


def _attend_with_shared_scores(
    queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
) -> Tensor:
    """One softmax for all heads.

    The score of head i is q k_j + c_i k_j with the shift c_i, so its weight of key j is p_j w_ij /
    sum_j p_j w_ij with p = softmax(q k_j) and w_ij = exp(c_i k_j): heads weight keys and values
    before the one product with p, and share scores, softmax and p. Terms are positive, so nothing
    cancels; but p_j and w_ij may underflow where their product does not. It cannot while the
    spread of c_i k_j over j is bounded, and beyond the bound each head gets its own scores.

    By default it is not taken on CUDA. To look at the spread is to wait for the GPU in every layer,
    and without a kernel that never writes scores down, all those of one head are in memory: on an
    H200 it took 1.5 to 3.6 times as long as `fused` (docs/measurements/2026-11-26-h200.md).
    """
    shifts = call.shifts
    assert shifts is not None
    precise = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        bias = keys.squeeze(1).to(precise) @ (shifts.to(precise) * call.scale).t()  # (B, S, n)
    low, high = bias.detach().aminmax(dim=1, keepdim=True)
    if float((high - low).max()) > MAX_KEY_BIAS_SPREAD:
        return attend_fused(queries + shifts[:, None], keys, values, call)
    # A one beside the values sums the weights in the same product.
    ones = values.new_ones(*values.shape[:-1], 1)
    with_one = torch.cat([values, ones], dim=-1).transpose(1, 2)  # (B, S, 1, d_v + 1)
    weights = torch.exp(bias - (low + high) / 2).to(values.dtype)
    weighted = (weights[..., None] * with_one).flatten(2)[:, None]  # (B, 1, S, n (d_v + 1))
    one_head = replace(call, shifts=None)
    most = thresholds_for(keys.device, keys.dtype).explicit_max_scores
    few = queries.size(2) * keys.size(2) <= most
    if few or keys.device.type != "cpu" or _refusal("blockwise", queries, keys, weighted, one_head):
        sums, _ = _attend_explicitly(queries, keys, weighted, one_head)
    else:
        sums = attend_blockwise(queries, keys, weighted, call.mask, call.is_causal, call.scale)
    batch, _, time, width = sums.shape
    num_heads = shifts.size(0)
    sums = sums.view(batch, time, num_heads, width // num_heads)  # (B, T, n, d_v + 1)
    totals = sums[..., -1:]
    totals = totals.masked_fill(totals == 0.0, 1.0)  # of rows that may attend to nothing
    heads = sums[..., :-1] / totals  # (B, T, n, d_v)
    return heads.transpose(1, 2)  # (B, n, T, d_v)


def _grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """(B, n, T, x) times (B, g, x, y) -> (B, n, T, y): the n / g heads of a group become rows.

    A broadcast matmul would copy `right` once for every head of its group.
    """
    batch, heads, length, inner = left.shape
    groups = right.size(1)
    rows = left.reshape(batch, groups, heads // groups * length, inner)  # (B, g, n / g * T, x)
    return (rows @ right).view(batch, heads, length, right.size(-1))
