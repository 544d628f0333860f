"""Attention of any scheme written out as plain multi-head attention, exactly or not at all.

Most schemes are multi-head attention with weights in common: written out, each head has a copy.
What has no such form is a head that compares in more dimensions than a head is wide.

Shape legend: n heads, r rank of a head's map, h width of a head, d `embed_dim`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_attn.attention import Attention, MultiHeadAttention
from nas_attn.conversion.maps import HeadMatrices, maps_of
from nas_attn.errors import PlanError

NEGLIGIBLE = 1e-6
"""Singular values of a head's map below this share of its largest are the rounding of weights in
single precision."""


@dataclass(frozen=True)
class _Scores:
    """Queries (n, h, d + 1), bias last, and keys (n, h, kdim) of heads of one width."""

    query: Tensor
    key: Tensor


def expand(module: Attention) -> MultiHeadAttention:
    """Write a module out as multi-head attention with as many heads as fairseq builds.

    Outputs are the same up to rounding. Heads that were pruned, and heads that one narrow head
    stands for, come back as heads that do nothing; biases of keys and values, which the softmax and
    the output bias absorb, are zero.

    Args:
        module: Module of any scheme, which is not changed.

    Returns:
        A module of the same widths, device, data type and mode, with biases.

    Raises:
        PlanError: Scores of a head need more dimensions than a head of multi-head attention has.
    """
    maps = maps_of(module).padded(module.embed_dim // module.head_dim)
    scores = _scores(maps, module.head_dim)
    made = MultiHeadAttention(
        module.embed_dim,
        maps.num_heads,
        kdim=module.kdim,
        vdim=module.vdim,
        dropout=module.dropout,
    ).double()
    assert made.q_proj.bias is not None
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        query = scores.query.flatten(0, 1)  # (n * h, d + 1)
        made.q_proj.weight.copy_(query[:, :-1])
        made.q_proj.bias.copy_(query[:, -1])
        made.k_proj.weight.copy_(scores.key.flatten(0, 1))
        made.v_proj.weight.copy_(maps.value.flatten(0, 1))
        made.out_proj.weight.copy_(maps.output.transpose(0, 1).flatten(1))
        made.out_proj.bias.copy_(maps.bias)
    weight = module.out_proj.weight
    return made.to(device=weight.device, dtype=weight.dtype).train(module.training)


def _scores(maps: HeadMatrices, width: int) -> _Scores:
    """Score maps of all heads by so many dimensions each.

    Raises:
        PlanError: Some head needs more.
    """
    queries, keys = [], []
    for head, (query, key) in enumerate(zip(maps.query, maps.key, strict=True)):
        used = query.any(dim=1) & key.any(dim=1)
        query, key = query[used], key[used]
        if len(query) > width:
            query, key = _fewest(query, key)
        if len(query) > width:
            raise PlanError(
                f"scores of head {head} have {len(query)} dimensions, and a head of multi-head "
                f"attention has {width}"
            )
        more = (0, 0, 0, width - len(query))
        queries.append(torch.nn.functional.pad(query, more))
        keys.append(torch.nn.functional.pad(key, more))
    return _Scores(torch.stack(queries), torch.stack(keys))


def _fewest(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The map query.T @ key by as few dimensions as its rank."""
    outer, left = torch.linalg.qr(query.t())
    inner, right = torch.linalg.qr(key.t())
    first, sizes, second = torch.linalg.svd(left @ right.t(), full_matrices=False)
    rank = int((sizes > NEGLIGIBLE * sizes[0]).sum())
    roots = sizes[:rank].sqrt()
    return (outer @ first[:, :rank] * roots).t(), (inner @ second[:rank].t() * roots).t()
