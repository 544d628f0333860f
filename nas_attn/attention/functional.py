"""Scaled dot-product attention over heads that may share keys and values.

`attend` is the one place that decides how attention is computed; schemes only say what is
attended. Each way of computing it is an *implementation*. All are exact: they differ in the order
of operations, in time and in memory. `choose_implementation` picks the fastest by shapes, device
and type.

Shape legend: B batch, n query heads, T query length, S key length, g_k key heads, g_v value heads,
d_k key width, d_v value width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nas_attn._deprecated import renamed_argument, renamed_names
from nas_attn.attention.blockwise import attend_blockwise
from nas_attn.attention.masks import causal_mask, rows_without_keys

Implementation = Literal["fused", "rows", "explicit", "blockwise", "shared_scores"]
"""How attention is computed:

`fused`: torch's fused kernel for every head; unequal widths are padded with zeros.
`rows`: the same, the heads that share a key and a value stacked as rows of one query.
`explicit`: all scores at once, softmax, product with the values.
`blockwise`: `explicit` for some rows of one head at a time, recomputed for gradients.
`shared_scores`: for queries that are one query shifted for each head, one softmax for all heads.
"""

IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

__getattr__ = renamed_names(
    __name__,
    {"Form": "Implementation", "FORMS": "IMPLEMENTATIONS", "choose_form": "choose_implementation"},
)

EXPLICIT_MAX_SCORES = 192 * 192
"""Most scores of a head for which computing all at once is faster than block by block (CPU)."""

SHARED_SCORES_MIN_QUERIES = 24
"""Fewest queries that make up for weighting the values for every head (CPU)."""

SHARED_SCORES_MIN_WORK = 2**24
"""Fewest products of all heads' scores that make up for more and smaller operations (CPU)."""

MAX_KEY_BIAS_SPREAD = 80.0
"""Largest spread of a head's key bias for which `shared_scores` keeps its precision: e^-80 is the
least share of a weight that can be lost, and float32 and bfloat16 hold e^-87."""


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What is asked of an implementation: `attend`'s arguments besides queries, keys and values."""

    scale: float
    shifts: Tensor | None = None
    mask: Tensor | None = None
    is_causal: bool = False
    dropout: float = 0.0
    need_weights: bool = False


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
    if implementation == "rows":
        return _attend_with_rows(queries, keys, values, call), None
    return _attend_fused(queries, keys, values, call), None


def choose_implementation(
    queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
) -> Implementation:
    """The fastest implementation that does what is asked without losing precision.

    Thresholds were measured by `nas-attn bench attention` on CPUs; elsewhere torch's fused kernels
    are taken. What looks at numbers or is differentiated by hand is left to eager execution.
    """
    if call.need_weights:
        return "explicit"
    on_cpu, eager = keys.device.type == "cpu", _is_eager()
    num_queries, num_keys = queries.size(2), keys.size(2)
    num_heads = queries.size(1) if call.shifts is None else call.shifts.size(0)
    work = queries.size(0) * num_heads * num_queries * num_keys * keys.size(-1)
    if (
        on_cpu
        and eager
        and num_queries >= SHARED_SCORES_MIN_QUERIES
        and work >= SHARED_SCORES_MIN_WORK
        and not _refusal("shared_scores", queries, keys, values, call)
    ):
        return "shared_scores"
    if keys.size(-1) == values.size(-1):
        stackable = num_heads > keys.size(1) and (keys.size(1) == 1 or num_queries == 1)
        if stackable and not _refusal("rows", queries, keys, values, call):
            return "rows"
        return "fused"
    # An exported graph serves all lengths, so this choice may not depend on the input's.
    few = not _lengths_are_open() and num_queries * num_keys <= EXPLICIT_MAX_SCORES
    if on_cpu and (few or call.dropout > 0.0):
        return "explicit"
    if on_cpu and eager and not _refusal("blockwise", queries, keys, values, call):
        return "blockwise"
    return "fused"


def _refusal(
    implementation: Implementation,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    call: AttentionCall,
) -> str:
    """Why an implementation cannot do what is asked; empty if it can."""
    if implementation == "explicit":
        return ""
    if call.need_weights:
        return "returns no weights"
    if implementation == "fused":
        return ""
    mask = call.mask
    if implementation == "rows":
        if keys.size(1) != values.size(1) or keys.size(-1) != values.size(-1):
            return "needs as many value heads as key heads, and as wide"
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


def _is_eager() -> bool:
    """Whether tensors are numbers here, and not recorded by a compiler, tracer or transform."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def _lengths_are_open() -> bool:
    """Whether lengths may be symbols: `torch.export` is recording."""
    return torch.compiler.is_compiling() and torch.compiler.is_exporting()


def _attend_fused(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    key_width, value_width = keys.size(-1), values.size(-1)
    width = max(key_width, value_width)
    # torch's CPU kernel reads grouped heads where they are, and its CUDA kernels only some of them.
    fewer = 1 < keys.size(1) == values.size(1) < queries.size(1)
    grouped = bool(fewer) and keys.device.type == "cpu"
    num_heads = keys.size(1) if grouped else queries.size(1)
    output = F.scaled_dot_product_attention(
        _widen(queries, width),
        _expand_heads(_widen(keys, width), num_heads),
        _expand_heads(_widen(values, width), num_heads),
        attn_mask=call.mask,
        dropout_p=call.dropout,
        is_causal=call.is_causal,
        scale=call.scale,
        enable_gqa=grouped,
    )
    return output[..., :value_width]


def _attend_with_rows(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    batch, heads, time, width = queries.shape
    groups = keys.size(1)
    output = F.scaled_dot_product_attention(
        queries.reshape(batch, groups, heads // groups * time, width),  # n / g heads as rows
        keys,
        values,
        attn_mask=call.mask,
        dropout_p=call.dropout,
        scale=call.scale,
    )
    return output.reshape(batch, heads, time, width)  # (B, n, T, d_v)


def _attend_explicitly(
    queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor | None]:
    if _lengths_are_open():
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
    if kept or not _is_eager():
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
    """
    shifts = call.shifts
    assert shifts is not None
    precise = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        bias = keys.squeeze(1).to(precise) @ (shifts.to(precise) * call.scale).t()  # (B, S, n)
    low, high = bias.detach().aminmax(dim=1, keepdim=True)
    if float((high - low).max()) > MAX_KEY_BIAS_SPREAD:
        return _attend_fused(queries + shifts[:, None], keys, values, call)
    # A one beside the values sums the weights in the same product.
    ones = values.new_ones(*values.shape[:-1], 1)
    with_one = torch.cat([values, ones], dim=-1).transpose(1, 2)  # (B, S, 1, d_v + 1)
    weights = torch.exp(bias - (low + high) / 2).to(values.dtype)
    weighted = (weights[..., None] * with_one).flatten(2)[:, None]  # (B, 1, S, n (d_v + 1))
    one_head = replace(call, shifts=None)
    few = queries.size(2) * keys.size(2) <= EXPLICIT_MAX_SCORES
    if few or _refusal("blockwise", queries, keys, weighted, one_head):
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
