"""How each scheme takes over the maps of trained heads.

A writer sets the weights of a freshly built module (float64) so that it computes what the maps
say, exactly where its scheme can, else as nearly as its metric tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.attention.collaborative import CollaborativeAttention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.grouped_query import GroupedQueryAttention
from nas_attn.attention.head_embedding_add import HeadEmbeddingAddAttention
from nas_attn.attention.head_embedding_mul import HeadEmbeddingMulAttention
from nas_attn.attention.latent import LatentAttention
from nas_attn.attention.multi_head import MultiHeadAttention
from nas_attn.attention.multi_query import MultiQueryAttention
from nas_attn.attention.none import NoAttention
from nas_attn.attention.one_head import OneHeadAttention
from nas_attn.attention.reduced_key import ReducedKeyAttention
from nas_attn.attention.shared_key_value import SharedKeyValueAttention
from nas_attn.attention.single_head import SingleHeadAttention
from nas_attn.conversion.exact import common_eigenvectors, known_factors
from nas_attn.conversion.factors import Factors, collaborative_factors, is_exact, shared_rows
from nas_attn.conversion.latents import Weighed, shared_latent
from nas_attn.conversion.maps import HeadMatrices
from nas_attn.conversion.metric import InputStatistics
from nas_attn.errors import PlanError


@dataclass(frozen=True)
class Writer:
    """How a scheme takes over trained heads.

    Args:
        write: Function that sets the weights of a module (float64) by as many maps as it has heads.
        loses: Loss of the heads, in words, unless the module is then trained alone to do what they
            did (see `nas_attn.conversion.distillation`); None if the scheme inherits what they
            learned.
    """

    write: Callable[[Attention, HeadMatrices, InputStatistics], None]
    loses: str | None = None


@dataclass(frozen=True)
class _Values:
    """Value maps of groups, (groups, h, vdim), what heads make of them, (n, d, h), and the bias."""

    value: Tensor
    output: Tensor
    bias: Tensor


def write(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """Set a module's weights by trained maps.

    Args:
        module: Module of any scheme, in float64.
        maps: Maps of the trained heads, as many as the module has.
        metric: Statistics of the inputs.

    Raises:
        PlanError: no writer knows the scheme.
    """
    writer = WRITERS.get(type(module))
    if writer is None:
        raise PlanError(f"{type(module).__name__} cannot take over trained heads: {NO_WRITER}")
    with torch.no_grad():
        writer.write(module, maps, metric)


def cannot_inherit(module: Attention, *, distilled: bool = False) -> str | None:
    """Why a module's scheme cannot take over what trained heads have learned; None if it can.

    Args:
        module: Module of any weights.
        distilled: Whether converted modules are trained alone to do what the heads did.
    """
    writer = WRITERS.get(type(module))
    if writer is None:
        return f"{NO_WRITER}. Train it from scratch"
    if writer.loses is not None and not distilled:
        return f"{writer.loses}. Train it from scratch, distil it, or force the conversion"
    return None


def _grouped(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """Heads with queries of their own, and with keys and values of their own or of their group.

    How many groups there are, and how wide a key is, follows from the projections.
    """
    assert isinstance(module, (GroupedQueryAttention, ReducedKeyAttention, GroupedHeadAttention))
    values = keys = module.v_proj.out_features // module.head_dim
    if isinstance(module, GroupedQueryAttention):
        keys = module.num_groups
    query, key = _shared_keys(maps, metric, keys, module.k_proj.out_features // keys)
    set_linear(module.q_proj, query.flatten(0, 1))  # (n * key width, d + 1)
    set_linear(module.k_proj, _with_bias(key.flatten(0, 1)))  # (groups * key width, kdim + 1)
    set_values(module, shared_values(maps, metric, values, module.head_dim))


def _grouped_query(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """Tied or not."""
    assert isinstance(module, GroupedQueryAttention)
    (_tied if module.tied else _grouped)(module, maps, metric)


def _tied(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """Of a group, the rows that serve as key and as value, errors of both counted alike."""
    assert isinstance(module, GroupedQueryAttention)
    left, right = maps.query @ metric.query, maps.key @ metric.key
    outward, inward = maps.output.mT, maps.value @ metric.key
    size = maps.num_heads // module.num_groups
    queries, keys, outputs = [], [], []
    for group in range(module.num_groups):
        heads = slice(group * size, (group + 1) * size)
        pairs = ((left[heads], right[heads]), (outward[heads], inward[heads]))
        rows = shared_rows(module.head_dim, *((a / _norm(a, b), b) for a, b in pairs))
        queries.append((right[heads] @ rows.t()).mT @ maps.query[heads])
        keys.append(undo(rows, metric.key))
        outputs.append(maps.output[heads] @ inward[heads] @ rows.t())
    query, key, output = torch.cat(queries), torch.stack(keys), torch.cat(outputs)
    set_linear(module.q_proj, query.flatten(0, 1))
    set_linear(module.kv_proj, _with_bias(key.flatten(0, 1)))
    lost = maps.output @ maps.value - output @ key.repeat_interleave(size, dim=0)  # (n, d, vdim)
    _set_output(module, output, maps.bias + _constant(lost, metric))


def _latent(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """Heads of their own, on the latent from which scores and outputs lose least."""
    assert isinstance(module, LatentAttention)
    scores = Weighed.of(maps.query @ metric.query, maps.key, metric.key)
    outputs = Weighed.of(maps.output.mT, maps.value, metric.value)
    latent = shared_latent(module.latent_dim, scores, outputs)  # (r, kdim)
    heads, inner = _on_latents(latent, maps, metric)
    query, key = _shared_keys(heads, inner, maps.num_heads, module.head_dim)
    module.c_proj.weight.copy_(latent)
    set_linear(module.q_proj, query.flatten(0, 1))
    set_linear(module.k_proj, _with_bias(key.flatten(0, 1)))
    set_values(module, shared_values(heads, inner, maps.num_heads, module.head_dim))


def _on_latents(
    latent: Tensor, maps: HeadMatrices, metric: InputStatistics
) -> tuple[HeadMatrices, InputStatistics]:
    """Heads that see latents (r, q) of their inputs, as near as can be, and their metric."""
    key = maps.key @ metric.key @ (latent @ metric.key).t()  # its rows are orthonormal there
    wanted = (maps.value @ metric.value).flatten(0, 1).t()  # (q, n * h)
    solved = torch.linalg.lstsq((latent @ metric.value).t(), wanted, driver="gelsd").solution
    value = solved.t().view(*maps.value.shape[:2], len(latent))  # (n, h, r)
    lost = maps.output @ (maps.value - value @ latent)
    every = torch.eye(len(latent)).to(latent)
    mean = metric.value_mean @ latent.t()
    return (
        replace(maps, key=key, value=value, bias=maps.bias + _constant(lost, metric)),
        replace(metric, key=every, value=every, value_mean=mean),
    )


def _collaborative(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    assert isinstance(module, CollaborativeAttention)
    if module.content_bias is None:
        queries, root = maps.query, metric.query
    else:
        queries, root = maps.query[..., :-1], metric.centred_query
    query, key, mixing = _mixed(queries, maps.key, root, metric.key, module.shared_dim)
    module.mixing.copy_(mixing)
    set_linear(module.k_proj, _with_bias(key))
    if module.content_bias is None:
        set_linear(module.q_proj, query)
    else:
        set_linear(module.q_proj, _with_bias(query))
        mean = metric.query_mean
        whole = torch.einsum("nrd,d,nrk->nk", maps.query, mean, maps.key)  # (n, kdim)
        module.content_bias.weight.copy_(whole - (mixing * (query @ mean[:-1])) @ key)
    set_values(module, shared_values(maps, metric, module.num_value_heads, module.head_dim))


def _head_embedding_mul(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """Collaborative with a head's width; the query embedding mixes, the others do nothing."""
    assert isinstance(module, HeadEmbeddingMulAttention)
    query, key, mixing = _mixed(maps.query, maps.key, metric.query, metric.key, module.head_dim)
    set_linear(module.q_proj, query)
    set_linear(module.k_proj, _with_bias(key))
    module.query_embedding.copy_(mixing - module.offset)
    module.key_embedding.fill_(1.0 - module.offset)
    module.value_embedding.fill_(1.0 - module.offset)
    set_values(module, shared_values(maps, metric, 1, module.head_dim))


def _head_embedding_add(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """One bilinear form, the heads' mean; embeddings give back what keys each head likes."""
    assert isinstance(module, HeadEmbeddingAddAttention)
    key = _one_map(module, maps, metric)
    mean_query = torch.einsum("nrd,d->nr", maps.query, metric.query_mean)  # (n, r)
    liked = torch.einsum("nr,nrk->nk", mean_query, maps.key)  # (n, kdim)
    wanted = (liked - _shares(maps) @ liked) @ metric.key
    solved = torch.linalg.lstsq((key @ metric.key).t(), wanted.t(), driver="gelsd").solution
    module.query_embedding.copy_(solved.t())
    module.key_embedding.zero_()
    module.value_embedding.zero_()
    set_values(module, shared_values(maps, metric, 1, module.head_dim))


def _single_head(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """The heads' mean, as scores and as outputs."""
    assert isinstance(module, SingleHeadAttention)
    _one_map(module, maps, metric)
    whole = torch.einsum("ndh,nhv->dv", maps.output, maps.value)  # (d, vdim)
    everything = torch.eye(len(whole)).to(whole)
    rows = shared_rows(module.head_dim, (everything[None], (whole @ metric.value)[None]))
    output, value = whole @ metric.value @ rows.t(), undo(rows, metric.value)
    copies = module.out_proj.in_features // module.head_dim
    bias = maps.bias + (whole - output @ value) @ metric.value_mean.mean(0)
    set_values(module, _Values(value[None], (output / copies).expand(copies, -1, -1), bias))


def _none(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> None:
    """What the heads give on average; where there is no bias, nothing."""
    assert isinstance(module, NoAttention)
    if module.out_proj.bias is not None:
        lost = maps.output @ maps.value  # (n, d, vdim)
        module.out_proj.bias.copy_(maps.bias + _constant(lost, metric))


def _one_map(module: Attention, maps: HeadMatrices, metric: InputStatistics) -> Tensor:
    """Set queries and keys to the heads' mean map; returns the key rows."""
    assert isinstance(module, OneHeadAttention)
    mean = torch.einsum("n,nrd,nrk->dk", _shares(maps), maps.query, maps.key)  # (d + 1, kdim)
    rows = shared_rows(module.head_dim, (metric.query[None], (mean @ metric.key)[None]))
    key = undo(rows, metric.key)
    query = (mean @ metric.key @ rows.t()).t()
    query, key = _evened(query[None], key[None])
    set_linear(module.q_proj, query[0])
    set_linear(module.k_proj, _with_bias(key[0]))
    return key[0]


def _shares(maps: HeadMatrices) -> Tensor:
    """Shares (n) of the heads in their mean: alike for all that add something to the output."""
    sizes = maps.output.square().sum((1, 2)) * maps.value.square().sum((1, 2))
    counts = (sizes > 0.0).to(sizes)
    return counts / counts.sum() if bool(counts.any()) else torch.full_like(sizes, 1 / len(sizes))


def _mixed(
    query: Tensor, key: Tensor, query_root: Tensor, key_root: Tensor, shared_dim: int
) -> Factors:
    """Queries (R, p), keys (R, q) and mixing vectors (n, R) for the score maps of all heads."""
    left, right = query @ query_root, key @ key_root
    alone = collaborative_factors(left, right, shared_dim, sweeps=0)
    factors, starts = (alone.query, alone.key, alone.mixing), []
    if not is_exact(left, right, factors):  # some dimensions must be shared
        known = known_factors(query, key, shared_dim)
        if known is not None:
            starts.append((known[0] @ query_root, known[1] @ key_root, known[2]))
        if not (starts and is_exact(left, right, starts[0])):
            found = common_eigenvectors(left, right, shared_dim)
            starts += [] if found is None else [found]
        best = collaborative_factors(left, right, shared_dim, starts=starts)
        factors = best.query, best.key, best.mixing
    return undo(factors[0], query_root), undo(factors[1], key_root), factors[2]


def _shared_keys(
    maps: HeadMatrices, metric: InputStatistics, groups: int, width: int
) -> tuple[Tensor, Tensor]:
    """Queries (n, width, d + 1) of heads, and keys (groups, width, kdim) that groups share."""
    left, right = maps.query @ metric.query, maps.key @ metric.key
    size = maps.num_heads // groups
    queries, keys = [], []
    for group in range(groups):
        heads = slice(group * size, (group + 1) * size)
        rows = shared_rows(width, (left[heads], right[heads]))
        own = (right[heads] @ rows.t()).mT @ maps.query[heads]
        query, key = _evened(own, undo(rows, metric.key)[None])
        queries.append(query)
        keys.append(key)
    return torch.cat(queries), torch.cat(keys)


def shared_values(maps: HeadMatrices, metric: InputStatistics, groups: int, width: int) -> _Values:
    """Values that groups of heads share, and what heads make of them."""
    inward, outward = maps.value @ metric.value, maps.output.mT
    size = maps.num_heads // groups
    values, outputs = [], []
    for group in range(groups):
        heads = slice(group * size, (group + 1) * size)
        rows = shared_rows(width, (outward[heads], inward[heads]))
        output = maps.output[heads] @ inward[heads] @ rows.t()
        output, value = _evened(output, undo(rows, metric.value)[None])
        values.append(value)
        outputs.append(output)
    value, output = torch.cat(values), torch.cat(outputs)
    lost = maps.output @ maps.value - output @ value.repeat_interleave(size, dim=0)
    return _Values(value, output, maps.bias + _constant(lost, metric))


def largest_heads(maps: HeadMatrices, metric: InputStatistics, count: int) -> Tensor:
    """Those heads whose outputs vary most."""
    left, right = maps.output.mT, maps.value @ metric.value
    sizes = ((left @ left.mT) * (right @ right.mT)).sum((1, 2))
    return sizes.argsort(descending=True, stable=True)[:count].sort().values


def only_heads(
    maps: HeadMatrices, metric: InputStatistics, kept: Tensor
) -> tuple[HeadMatrices, InputStatistics]:
    """Some heads, and their metric; what the others give on average goes to the bias."""
    lost = maps.output @ maps.value
    lost[kept] = 0.0
    few = HeadMatrices(
        query=maps.query[kept],
        key=maps.key[kept],
        value=maps.value[kept],
        output=maps.output[kept],
        bias=maps.bias + _constant(lost, metric),
    )
    return few, replace(metric, value_mean=metric.value_mean[kept])


def _constant(lost: Tensor, metric: InputStatistics) -> Tensor:
    """What maps (n, d, vdim) that were given up make of the mean."""
    return torch.einsum("ndv,nv->d", lost, metric.value_mean)


def undo(rows: Tensor, root: Tensor) -> Tensor:
    """rows L^-1, the rows for inputs as they are."""
    undone: Tensor = torch.linalg.solve_triangular(root, rows, upper=False, left=False)
    return undone


def _evened(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, of factors whose numbers are of one size."""
    sizes = [(t**2).mean().sqrt().clamp_min(torch.finfo(t.dtype).tiny) for t in (first, second)]
    ratio = (sizes[1] / sizes[0]).sqrt()
    return first * ratio, second / ratio


def _norm(left: Tensor, right: Tensor) -> Tensor:
    """Of all maps left[i].T @ right[i] together."""
    squared = ((left @ left.mT) * (right @ right.mT)).sum().clamp_min(0.0)
    return squared.sqrt().clamp_min(torch.finfo(left.dtype).tiny)


def _with_bias(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(*rows.shape[:-1], 1)], dim=-1)


def set_linear(projection: torch.nn.Linear, rows: Tensor) -> None:
    """Set weights and bias by (rows, inputs + 1)."""
    projection.weight.copy_(rows[:, :-1])
    if projection.bias is not None:
        projection.bias.copy_(rows[:, -1])


def set_values(module: Attention, values: _Values) -> None:
    """Set values and the output projection by maps."""
    assert isinstance(module.v_proj, torch.nn.Linear)
    set_linear(module.v_proj, _with_bias(values.value.flatten(0, 1)))
    _set_output(module, values.output, values.bias)


def _set_output(module: Attention, output: Tensor, bias: Tensor) -> None:
    set_linear(module.out_proj, torch.cat([output.transpose(0, 1).flatten(1), bias[:, None]], 1))


WRITERS: dict[type[Attention], Writer] = {
    MultiHeadAttention: Writer(_grouped),
    GroupedQueryAttention: Writer(_grouped_query),
    MultiQueryAttention: Writer(_grouped),
    GroupedHeadAttention: Writer(_grouped),
    ReducedKeyAttention: Writer(_grouped),
    CollaborativeAttention: Writer(_collaborative),
    HeadEmbeddingMulAttention: Writer(_head_embedding_mul),
    HeadEmbeddingAddAttention: Writer(
        _head_embedding_add,
        loses="all its heads share one bilinear form, and a converted model loses what they "
        "learned",
    ),
    SharedKeyValueAttention: Writer(_tied),
    LatentAttention: Writer(_latent),
    SingleHeadAttention: Writer(_single_head),
    NoAttention: Writer(_none),
}
"""By the modules of the registry; a scheme that is not here is never converted to."""

NO_WRITER = "it has no writer in nas_attn.conversion.schemes"
