"""Convert one trained attention module to another scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.registry import build_attention
from nas_attn.conversion.distillation import EXACT, Distilled
from nas_attn.conversion.maps import HeadMatrices, maps_of
from nas_attn.conversion.metric import InputStatistics, RecordedCall, attention_scores, run
from nas_attn.conversion.pooling import Pooling, mean_pool
from nas_attn.conversion.schemes import (
    cannot_inherit,
    largest_heads,
    only_heads,
    write,
)
from nas_attn.conversion.source import ConversionSource
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Shares of the mean square of a head's output that hold refitted weights to what they were."""

Distil = Callable[[Attention, Attention], Distilled]
"""Trains the first module, changed in place, to do what the second does."""


@dataclass(frozen=True)
class Errors:
    """How far a converted module is from the trained one, on recorded calls.

    Args:
        scores: Relative error of scores, as far as the softmax sees them: of each query, less the
            mean over its keys. None if the schemes have different numbers of heads.
        outputs: Relative error of outputs.
    """

    scores: float | None
    outputs: float


@dataclass(frozen=True)
class Conversion:
    """A converted module.

    Args:
        module: Module in the type of the trained one.
        errors: Errors on the calls; None without calls.
        distilled: What training it alone did; None if it was not.
    """

    module: Attention
    errors: Errors | None
    distilled: Distilled | None = None


def convert_attention(
    trained: Attention,
    choice: AttentionChoice,
    calls: Sequence[RecordedCall] = (),
    *,
    refit: bool = True,
    force: bool = False,
    pooling: Pooling | None = None,
    distil: Distil | None = None,
) -> Conversion:
    """Make a module of another scheme that computes what a trained one does, or nearly.

    Exact where the scheme can hold the trained heads, such as `collaborative` whose shared
    dimension is as wide as all heads together. Where it cannot, the least error is sought: of
    scores and outputs on inputs such as the calls have, or without calls of the weights.

    Args:
        trained: Trained module of any scheme; not changed.
        choice: Scheme and options of the new module.
        calls: Recorded calls of the trained module (see `recorded`).
        refit: Whether to solve the output projection anew where there are calls, by least squares.
        force: Whether to convert also to a scheme that cannot inherit.
        pooling: How to share keys and values as means of heads, to compare with; nothing is
            refitted.
        distil: What trains the converted module alone, given it and the trained one, both in
            float64; it is not called where the conversion is exact.

    Raises:
        PlanError: the choice does not fit the module, its scheme cannot inherit, or weights or
            inputs are no numbers.
    """
    return convert_from(
        ConversionSource(trained, calls),
        choice,
        refit=refit,
        force=force,
        pooling=pooling,
        distil=distil,
    )


def convert_from(
    source: ConversionSource,
    choice: AttentionChoice,
    *,
    refit: bool = True,
    force: bool = False,
    pooling: Pooling | None = None,
    distil: Distil | None = None,
    judge: bool = True,
) -> Conversion:
    """The same as `convert_attention` of a module that is prepared for several conversions.

    Args:
        source: Trained module with its calls.
        choice: Scheme and options of the new module.
        refit: As in `convert_attention`.
        force: As in `convert_attention`.
        pooling: As in `convert_attention`.
        distil: As in `convert_attention`.
        judge: Whether errors on the calls are wanted.

    Raises:
        PlanError: The choice does not fit the module, or its scheme cannot inherit.
    """
    trained, reference = source.trained, source.reference
    module = _built_for(trained, choice, force=force, distilled=distil is not None)
    maps, metric = _what_to_write(module, source)
    if pooling is not None:
        mean_pool(module.eval(), reference, metric, pooling)
    elif not _copied(module.eval(), reference):
        write(module, maps, metric)
    errors = None
    if source.calls:
        if refit and pooling is None:
            refit_output(module, source)
        if judge or distil is not None:
            errors = errors_of(module, source)
    distilled = None
    if distil is not None and (errors is None or errors.outputs > EXACT):
        distilled = distil(module, reference)
        errors = errors_of(module, source) if source.calls and judge else None
    parameter = next(trained.parameters())
    module.to(device=parameter.device, dtype=parameter.dtype).train(trained.training)
    return Conversion(module, errors, distilled)


def inherits(module: Attention, *, distilled: bool = False) -> bool:
    """Whether a module, of any weights, can take over what trained heads have learned.

    It follows from the writers in `nas_attn.conversion.schemes`: a scheme without one cannot, nor
    can one whose writer says what it loses, unless converted modules are distilled.

    Args:
        module: Module of the scheme.
        distilled: Whether converted modules are trained alone to do what the heads did.
    """
    return cannot_inherit(module, distilled=distilled) is None


def build_like(trained: Attention, choice: AttentionChoice) -> Attention:
    """A new module of a choice for the place of a trained one: of its widths, heads and dropout.

    Raises:
        PlanError: the choice does not fit.
    """
    return build_attention(
        choice.scheme,
        trained.embed_dim,
        trained.embed_dim // trained.head_dim,
        kdim=trained.kdim,
        vdim=trained.vdim,
        dropout=trained.dropout,
        bias=trained.has_bias,
        **dict(choice.options),
    )


def _built_for(
    trained: Attention, choice: AttentionChoice, *, force: bool, distilled: bool
) -> Attention:
    """A new module (float64) of a scheme, as wide as a trained one.

    Raises:
        PlanError: the choice does not fit, or its scheme cannot inherit and nothing is forced.
    """
    module = build_like(trained, choice).double()
    same = type(module) is type(trained)
    why = None if same else cannot_inherit(module, distilled=distilled)
    if why is not None and not force:
        raise PlanError(f"{choice.scheme} cannot inherit trained heads: {why}")
    return module


def _what_to_write(
    module: Attention, source: ConversionSource
) -> tuple[HeadMatrices, InputStatistics]:
    """The heads that a module takes over, and their metric.

    All of them, or those that its plan names, or as many as it has, without which the least is
    lost; so too where a plan names heads that are gone already.
    """
    reference = source.reference
    num_heads = reference.embed_dim // reference.head_dim
    own_heads, maps = source.maps.num_heads, source.maps.padded(num_heads)
    metric = source.metric
    if isinstance(module, GroupedHeadAttention) and module.num_heads < num_heads:
        known = list(heads_of(reference))
        if module.names is not None and set(module.names) <= set(known):
            kept = torch.tensor([known.index(name) for name in module.names])
        elif source.calls and module.num_heads < own_heads and reference.cache_size():
            kept = heads_to_keep(reference, source.calls, module.num_heads)
        else:
            kept = largest_heads(maps, metric, module.num_heads)
        maps, metric = only_heads(maps, metric, kept)
    return maps, metric


@torch.no_grad()
def _copied(module: Attention, reference: Attention) -> bool:
    """Copy the parameters if the module then computes the very same; say whether it does."""
    given, taken = dict(reference.named_parameters()), dict(module.named_parameters())
    if {k: v.shape for k, v in given.items()} != {k: v.shape for k, v in taken.items()}:
        return False
    before = {name: parameter.clone() for name, parameter in taken.items()}
    for name, parameter in taken.items():
        parameter.copy_(given[name])
    ours, theirs = maps_of(module), maps_of(reference)
    if all(
        torch.equal(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(HeadMatrices)
    ):
        return True
    for name, parameter in taken.items():
        parameter.copy_(before[name])
    return False


@torch.no_grad()
def errors_of(module: Attention, source: ConversionSource) -> Errors:
    """Compare a converted module (float64) with the trained one on its calls."""
    reference = source.reference
    same_heads = module.num_heads == reference.num_heads
    scores = torch.zeros(2, dtype=torch.float64)
    outputs = torch.zeros(2, dtype=torch.float64)
    for call, wanted in zip(source.calls, source.outputs, strict=True):
        given = run(module, call)[call.valid_queries]
        outputs += torch.stack([((given - wanted) ** 2).sum(), (wanted**2).sum()])
        if same_heads:
            seen = _seen_by_softmax(attention_scores(reference, call), call)
            lost = _seen_by_softmax(attention_scores(module, call), call) - seen
            scores += torch.stack([(lost**2).sum(), (seen**2).sum()])
    return Errors(_relative(scores) if same_heads else None, _relative(outputs))


@torch.no_grad()
def refit_output(module: Attention, source: ConversionSource) -> None:
    """Solve a module's output projection so that outputs are nearest to the trained module's.

    Least squares over what the projection gets, held to what it was by a ridge. Of `RIDGES` the one
    is taken that serves unseen sequences best, as either half of the sequences says of the other.

    Args:
        module: Converted module (float64); changed in place.
        source: Trained module with its calls.
    """
    has_bias = module.out_proj.bias is not None
    inputs = module.out_proj.in_features
    if not inputs:  # the bias alone, which is the mean already
        return
    size = inputs + has_bias
    grams = torch.zeros(2, size, size, dtype=torch.float64)
    targets = torch.zeros(2, size, module.embed_dim, dtype=torch.float64)
    for call, wanted in zip(source.calls, source.outputs, strict=True):
        joined, output, sequence = _joined(module, call)
        lost = wanted - output
        for half in range(2):
            rows = sequence % 2 == half
            some = joined[rows, :size]
            grams[half] += some.t() @ some
            targets[half] += some.t() @ lost[rows]

    def solve(gram: Tensor, target: Tensor, ridge: float) -> Tensor:
        held = torch.full((size,), 1e-9, dtype=torch.float64)
        held[:inputs] = ridge
        scale = gram.diagonal()[:inputs].mean().clamp_min(torch.finfo(gram.dtype).tiny)
        solved: Tensor = torch.linalg.solve(gram + scale * held.diag(), target)
        return solved

    def gain(ridge: float) -> float:
        """By how much the squared error of unseen sequences falls."""
        total = 0.0
        for seen, unseen in ((0, 1), (1, 0)):
            change = solve(grams[seen], targets[seen], ridge)
            fall = (
                2.0 * (change * targets[unseen]).sum() - (change * (grams[unseen] @ change)).sum()
            )
            total += float(fall)
        return total

    best = max(RIDGES, key=gain)
    if gain(best) <= 0.0:
        return
    change = solve(grams.sum(0), targets.sum(0), best)
    module.out_proj.weight.add_(change[:inputs].t())
    if has_bias:
        module.out_proj.bias.add_(change[-1])


def heads_of(trained: Attention) -> Sequence[int]:
    """The numbers by which plans know the heads of a module."""
    named = trained.names if isinstance(trained, GroupedHeadAttention) else None
    return range(trained.num_heads) if named is None else named


@torch.no_grad()
def heads_to_keep(module: Attention, calls: Sequence[RecordedCall], count: int) -> Tensor:
    """Heads without which the least is lost, given up one by one, the others refitted each time.

    Args:
        module: Trained module.
        calls: Recorded calls in its type.
        count: Number of heads that stay.
    """
    gram = torch.zeros(())
    for call in calls:
        joined, _, _ = _joined(module, call)
        gram = gram + joined.t() @ joined
    weight = module.out_proj.weight
    whole = torch.cat([weight, weight.new_zeros(len(weight), 1)], dim=1).t()
    head_of = torch.arange(weight.size(1)) // (weight.size(1) // module.num_heads)
    head_of = torch.cat([head_of, torch.tensor([-1])])  # a one for the bias, which always stays
    gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    wanted = gram @ whole

    def kept_of(heads: list[int]) -> Tensor:
        columns = torch.isin(head_of, torch.tensor([-1, *heads]))
        solved = torch.linalg.solve(gram[columns][:, columns], wanted[columns])
        explained: Tensor = (solved * wanted[columns]).sum()
        return explained

    heads = list(range(module.num_heads))
    while len(heads) > count:
        gone = max(heads, key=lambda head: float(kept_of([h for h in heads if h != head])))
        heads.remove(gone)
    return torch.tensor(heads)


def _joined(module: Attention, call: RecordedCall) -> tuple[Tensor, Tensor, Tensor]:
    """What the output projection gets, (N, width + 1), a one behind, what it makes of it, and to
    which sequence of the batch each belongs."""
    seen: list[Tensor] = []
    hook = module.out_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        output = run(module, call)[call.valid_queries]
    finally:
        hook.remove()
    joined = seen[0][call.valid_queries]  # (N, width)
    sequence = call.valid_queries.nonzero()[:, 0]
    return torch.cat([joined, joined.new_ones(len(joined), 1)], dim=1), output, sequence


def _seen_by_softmax(scores: Tensor, call: RecordedCall) -> Tensor:
    """Scores less their mean over the keys that a query sees; zero elsewhere."""
    mask = call.mask()
    if mask is None:
        seen = torch.ones_like(scores)
    else:
        allowed = mask if mask.dtype == torch.bool else mask > -math.inf
        seen = allowed.expand_as(scores).to(scores)
    seen = seen * call.valid_queries[:, None, :, None]
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1.0)
    return (scores - mean) * seen


def _relative(sums: Tensor) -> float:
    return float((sums[0] / sums[1].clamp_min(torch.finfo(sums.dtype).tiny)).sqrt())
