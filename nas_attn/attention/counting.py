"""Numbers that a plan fixes before any training: parameters and cache."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from nas_attn.attention.base import Attention
from nas_attn.attention.registry import build_attention
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape


def build_on_meta(choice: AttentionChoice, shape: SiteShape) -> Attention:
    """Build a choice's module on the meta device: shapes without storage.

    Raises:
        PlanError: the choice does not fit the shape.
    """
    options: dict[str, Any] = dict(choice.options)
    with torch.device("meta"):
        return build_attention(
            choice.scheme,
            shape.embed_dim,
            shape.num_heads,
            kdim=shape.kdim,
            vdim=shape.kdim,
            **options,
        )


@lru_cache(maxsize=4096)
def count_choice(choice: AttentionChoice, shape: SiteShape) -> int:
    """Parameters of one attention module, output projection included."""
    return sum(parameter.numel() for parameter in build_on_meta(choice, shape).parameters())


def count_plan(plan: AttentionPlan, shapes: dict[str, SiteShape]) -> int:
    """Parameters of all attention modules of a model.

    Args:
        plan: must name every site of `shapes`.
        shapes: the model's sites.

    Raises:
        PlanError: the plan does not fit the shapes.
    """
    return sum(
        count_choice(choice, shape)
        for site, shape in shapes.items()
        for choice in plan.layers(site, shape.num_layers)
    )


def count_cache(plan: AttentionPlan, shapes: dict[str, SiteShape]) -> int:
    """Numbers cached for each token of a decoder's own output, over all its layers."""
    shape = shapes["decoder_self"]
    choices = plan.layers("decoder_self", shape.num_layers)
    return sum(build_on_meta(choice, shape).cache_size() for choice in choices)


class ModelSize(NamedTuple):
    """Parameters of a whole model, shared ones counted once."""

    attention: int
    """Projections, mixing and biases of all attention modules, output projections included."""
    non_embedding: int
    """All but token and position tables and the projection onto the vocabulary."""
    total: int


def count_model(model: nn.Module) -> ModelSize:
    """Count a built model's parameters; works on the meta device.

    Embeddings are `torch.nn.Embedding` tables and modules named `output_projection`.
    """
    attention = (m for m in model.modules() if isinstance(m, Attention))
    embeddings = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] == "output_projection"
    )
    total = _count_unique([model])
    return ModelSize(_count_unique(attention), total - _count_unique(embeddings), total)


def _count_unique(modules: Iterable[nn.Module]) -> int:
    parameters = {p for module in modules for p in module.parameters()}
    return sum(parameter.numel() for parameter in parameters)
