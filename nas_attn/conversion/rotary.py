"""Conversion of attention with rotary embeddings (Su et al. 2021), by what commutes with them.

A pair of dimensions is a complex number, q of a query and k of a key, and positions m and n turn it
by angles t m and t n: the pair adds Re(conj(q) k exp(i t (n - m))) to the score. What heads share
must commute with the turning, so a pair of one head can only be another's times a complex number.
For each pair of a group, the shared key is the row whose multiples come nearest to the heads' keys,
the first of a singular value decomposition; heads' queries take up their multipliers. It is exact
where heads' keys are such multiples, and the nearest on average over all distances else.

Shape legend: n heads, h width of a head, p = h / 2 pairs, d `embed_dim`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.attention.grouped_query import GroupedQueryAttention
from nas_attn.attention.multi_head import MultiHeadAttention
from nas_attn.conversion.convert import Conversion, build_like
from nas_attn.conversion.maps import maps_of
from nas_attn.conversion.metric import InputStatistics, RecordedCall, root
from nas_attn.conversion.schemes import set_linear, set_values, shared_values
from nas_attn.conversion.source import ConversionSource
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice


def convert_rotary(
    trained: Attention, choice: AttentionChoice, calls: Sequence[RecordedCall] = ()
) -> Conversion:
    """Convert a module whose queries and keys are turned outside of it.

    Args:
        trained: Module in whose heads first and second half of a width are pairs; not changed.
        choice: Scheme, one whose groups of heads share whole keys and values.
        calls: Recorded calls; their inputs say which directions count.

    Raises:
        PlanError: The scheme cannot turn with positions, or the choice does not fit.
    """
    module = build_like(trained, choice).double()
    if not isinstance(module, MultiHeadAttention | GroupedQueryAttention):
        raise PlanError(
            f"{choice.scheme} cannot inherit from heads whose keys are rotated by position: only "
            "grouped_query and multi_query can, which share whole keys"
        )
    source = ConversionSource(trained, calls)
    inputs = _inputs(source)
    groups = module.k_proj.out_features // module.head_dim
    query, key = _affine_heads(source.reference)
    query, key = _shared(query, key, groups, root(inputs.t() @ inputs / len(inputs)))
    centred = inputs[:, :-1] - inputs[:, :-1].mean(0)
    metric = InputStatistics.of_weights(source.reference)
    mean = inputs[:, :-1].mean(0) if calls else metric.value_mean
    metric = InputStatistics(
        query=metric.query,
        centred_query=metric.centred_query,
        query_mean=metric.query_mean,
        key=metric.key,
        value=root(centred.t() @ centred / len(inputs)) if calls else metric.value,
        value_mean=mean.expand(module.num_heads, -1),
    )
    with torch.no_grad():
        set_linear(module.q_proj, query.flatten(0, 1))
        set_linear(module.k_proj, key.flatten(0, 1))
        set_values(module, shared_values(maps_of(trained), metric, groups, module.head_dim))
    weight = next(trained.parameters())
    return Conversion(module.to(weight).train(trained.training), errors=None)


def _inputs(source: ConversionSource) -> Tensor:
    """(N, d + 1), inputs that count with a one behind; without calls every direction alike."""
    width = source.reference.embed_dim
    if not source.calls:
        return torch.eye(width + 1, dtype=torch.float64)
    seen = torch.cat([call.query[call.valid_queries] for call in source.calls])
    return torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)


@torch.no_grad()
def _affine_heads(module: Attention) -> tuple[Tensor, Tensor]:
    """Queries and keys of heads, (n, h, d + 1); the last column is the bias, which turns too."""
    units = torch.eye(module.embed_dim + 1, module.embed_dim, dtype=torch.float64)[None]
    found = []
    for images in (module.queries(units)[0], module.keys(units)[0]):
        constant = images[:, -1:]
        rows = torch.cat([images[:, :-1] - constant, constant], dim=1).mT
        found.append(rows.repeat_interleave(module.num_heads // len(rows), dim=0))
    return found[0], found[1]


def _shared(query: Tensor, key: Tensor, groups: int, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (n, h, d + 1) for keys (groups, h, d + 1) that heads of a group share.

    Args:
        query: (n, h, d + 1).
        key: (n, h, d + 1).
        groups: Number of groups.
        metric: (d + 1, d + 1), root of the second moment of inputs.
    """
    queries, keys = _complex(query), _complex(key)  # (n, p, d + 1)
    size = len(queries) // groups
    wide = metric.to(queries)
    left, right = (
        t.view(groups, size, *t.shape[1:]).transpose(1, 2) for t in (queries, keys)
    )  # (groups, p, size, d + 1)
    seen = right @ wide  # (groups, p, size, d + 1)
    weight = (left @ wide).norm(dim=-1, keepdim=True)
    first = torch.linalg.svd(weight * seen, full_matrices=False).Vh[..., :1, :]
    multiplier = seen @ first.mH  # (groups, p, size, 1)
    own = (multiplier.conj() * left).transpose(1, 2).flatten(0, 1)
    shared = torch.linalg.solve_triangular(wide, first, upper=False, left=False)[..., 0, :]
    sizes = [t.abs().square().mean().sqrt().clamp_min(1e-300) for t in (own, shared)]
    ratio = (sizes[1] / sizes[0]).sqrt()
    return _real(own * ratio), _real(shared / ratio)


def _complex(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=1)
    return torch.complex(first, second)


def _real(pairs: Tensor) -> Tensor:
    return torch.cat([pairs.real, pairs.imag], dim=1)
