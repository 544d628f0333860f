"""Sharing keys and values as means of heads: what conversions are compared with."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.attention.grouped_query import GroupedQueryAttention
from nas_attn.conversion.metric import InputStatistics
from nas_attn.errors import PlanError

Pooling = Literal["means", "aligned_means"]
"""How a group's heads become one.

`means`: the mean of their keys and of their values (Ainslie et al. 2023, arXiv 2305.13245).
`aligned_means`: the same, once each head is turned by an orthogonal matrix so that it lies as near
to the others as it can (Jin et al. 2024, arXiv 2412.20677). Queries turn with keys and the output
projection with values, so that turning changes nothing.
"""

MAX_ROUNDS = 100
"""Rounds of turning heads to their mean and taking the mean again, at most."""
TOLERANCE = 1e-9
"""Relative fall of the squared distance to the mean below which a round is the last."""


@torch.no_grad()
def mean_pool(
    module: Attention, trained: Attention, metric: InputStatistics, pooling: Pooling
) -> None:
    """Set the keys and values of groups to means of trained heads.

    Args:
        module: New module, in float64.
        trained: Trained module, in float64.
        metric: Statistics of its inputs, which say what lies near; only aligned means depend on
            them.
        pooling: How.

    Raises:
        PlanError: it is for other schemes.
    """
    if not (
        isinstance(module, GroupedQueryAttention)
        and isinstance(trained, GroupedQueryAttention)
        and not any(m.tied or m.num_value_groups != m.num_groups for m in (module, trained))
        and trained.num_groups % module.num_groups == 0
    ):
        raise PlanError("means are taken of multi-head attention, for grouped_query or multi_query")
    if pooling == "aligned_means":
        trained = aligned(trained, module.num_groups, metric)
    heads = trained.num_groups // module.num_groups
    weights = trained.state_dict()
    for name, weight in weights.items():
        if name.startswith(("k_proj", "v_proj")):
            split = weight.unflatten(0, (module.num_groups, heads, module.head_dim))
            weights[name] = split.mean(1).flatten(0, 1)
    module.load_state_dict(weights)


@torch.no_grad()
def aligned(
    trained: GroupedQueryAttention, groups: int, metric: InputStatistics
) -> GroupedQueryAttention:
    """The same attention, its heads turned so that those of a group lie near to each other.

    Args:
        trained: Trained module, in float64; not changed.
        groups: Number of groups, which divides that of its own.
        metric: Statistics of its inputs.
    """
    turned = copy.deepcopy(trained)
    width, own = trained.head_dim, trained.num_groups
    served = trained.num_heads // own  # query heads of each key head
    keys = turned.k_proj.weight.view(own, width, -1)
    values = turned.v_proj.weight.view(own, width, -1)
    size = own // groups
    of_keys = torch.cat([turns(few @ metric.key) for few in torch.split(keys, size)])  # (g, h, h)
    of_values = torch.cat([turns(few @ metric.value) for few in torch.split(values, size)])
    for projection, turn in (
        (turned.k_proj, of_keys),
        (turned.v_proj, of_values),
        (turned.q_proj, of_keys.repeat_interleave(served, dim=0)),
    ):
        rows = projection.weight.view(len(turn), width, -1)  # (heads, h, inputs)
        projection.weight.copy_((turn @ rows).flatten(0, 1))
        if projection.bias is not None:
            bias = projection.bias.view(len(turn), width, 1)
            projection.bias.copy_((turn @ bias).flatten())
    back = of_values.repeat_interleave(served, dim=0).mT
    columns = turned.out_proj.weight.view(-1, trained.num_heads, width)  # (d, n, h)
    turned.out_proj.weight.copy_(torch.einsum("dnh,nhk->dnk", columns, back).flatten(1))
    return turned


def turns(heads: Tensor) -> Tensor:
    """Orthogonal matrices (n, h, h) that bring matrices (n, h, inputs) near to their mean.

    Generalised Procrustes: turn each to the mean of all, take the mean again, until it rests. The
    first matrix is where the mean starts.
    """
    mean, before = heads[0], float("inf")
    for _ in range(MAX_ROUNDS):
        left, _, right = torch.linalg.svd(mean @ heads.mT)  # (n, h, h)
        found: Tensor = left @ right
        turned = found @ heads
        mean = turned.mean(0)
        distance = float((turned - mean).square().sum())
        if before - distance <= TOLERANCE * float(heads.square().sum()):
            break
        before = distance
    return found
