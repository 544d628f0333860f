"""Numbers that a plan fixes before any training: parameters and cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from nas_attn.attention.base import Attention
from nas_attn.attention.pruning import PrunableAttention
from nas_attn.attention.registry import build_attention, get_scheme
from nas_attn.measures import ModelSize
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape


def build_on_meta(choice: AttentionChoice, shape: SiteShape) -> Attention:
    """Build a choice's module on the meta device: shapes without storage.

    Raises:
        PlanError: the choice does not fit the shape.
    """
    with torch.device("meta"):
        return build_choice(choice, shape)


def build_choice(choice: AttentionChoice, shape: SiteShape) -> Attention:
    """Build a choice's module with new weights.

    Raises:
        PlanError: the choice does not fit the shape.
    """
    options: dict[str, Any] = dict(choice.options)
    return build_attention(
        choice.scheme,
        shape.embed_dim,
        shape.num_heads,
        kdim=shape.kdim,
        vdim=shape.kdim,
        **options,
    )


class AttentionSize(NamedTuple):
    """Parameters of attention modules, output projections included."""

    parameters: int
    """All of them, trained or not."""
    effective: int
    """Those that act: see `Attention.effective_parameters`."""


@lru_cache(maxsize=4096)
def count_choice(choice: AttentionChoice, shape: SiteShape) -> AttentionSize:
    """Parameters of one attention module."""
    module = build_on_meta(choice, shape)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return AttentionSize(parameters, module.effective_parameters())


def count_plan(plan: AttentionPlan, shapes: dict[str, SiteShape]) -> AttentionSize:
    """Parameters of all attention modules of a model.

    Args:
        plan: Attention plan that names every site of `shapes`.
        shapes: The model's sites.

    Raises:
        PlanError: the plan does not fit the shapes.
    """
    sizes = [
        count_choice(choice, shape)
        for site, shape in shapes.items()
        for choice in plan.layers(site, shape.num_layers)
    ]
    return AttentionSize(sum(s.parameters for s in sizes), sum(s.effective for s in sizes))


def expected_plan(plan: AttentionPlan, shapes: dict[str, SiteShape]) -> tuple[AttentionPlan, bool]:
    """What pruning in training will make of a plan, as far as that is known before.

    Returns:
        The plan after pruning, and whether it is certain. Where only training tells how much stays,
        all of it is counted.
    """
    certain = True
    sites = {}
    for site, shape in shapes.items():
        choices = []
        for choice in plan.layers(site, shape.num_layers):
            module = get_scheme(choice.scheme).module
            if issubclass(module, PrunableAttention):
                options = module.expected(dict(choice.options), shape.num_heads)
                certain = certain and options is not None
                if options is not None:
                    choice = AttentionChoice.of(choice.scheme, **options)
            choices.append(choice)
        sites[site] = choices
    return AttentionPlan.of(sites), certain


def least_plan(plan: AttentionPlan, shapes: dict[str, SiteShape]) -> AttentionPlan:
    """What is left of a plan if training prunes as much as it can; no seed can come to less."""
    sites = {}
    for site, shape in shapes.items():
        choices = []
        for choice in plan.layers(site, shape.num_layers):
            module = get_scheme(choice.scheme).module
            if issubclass(module, PrunableAttention):
                options = module.least(dict(choice.options), shape.num_heads)
                choice = AttentionChoice.of(choice.scheme, **options)
            choices.append(choice)
        sites[site] = choices
    return AttentionPlan.of(sites)


def count_cache(
    plan: AttentionPlan, shapes: dict[str, SiteShape], site: str = "decoder_self"
) -> int:
    """Numbers cached for each token that a site of a decoder attends to, over all its layers."""
    shape = shapes[site]
    choices = plan.layers(site, shape.num_layers)
    return sum(_cache_of_choice(choice, shape) for choice in choices)


@lru_cache(maxsize=4096)
def _cache_of_choice(choice: AttentionChoice, shape: SiteShape) -> int:
    return build_on_meta(choice, shape).cache_size()


def count_model(model: nn.Module) -> ModelSize:
    """Count a built model's parameters; works on the meta device.

    Embeddings are `torch.nn.Embedding` tables, modules named `output_projection`, and the weight of
    a masked language model's `lm_head`.
    """
    attention = [m for m in model.modules() if isinstance(m, Attention)]
    raw = _count_unique(p for module in attention for p in module.parameters())
    redundant = raw - sum(module.effective_parameters() for module in attention)
    total = _count_unique(model.parameters())
    embeddings = _count_unique(_embeddings(model))
    return ModelSize(raw, total - embeddings, total, total - redundant)


def _embeddings(model: nn.Module) -> Iterator[nn.Parameter]:
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) or last == "output_projection":
            yield from module.parameters()
        elif last == "lm_head":
            yield module.get_parameter("weight")


def _count_unique(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in set(parameters))
