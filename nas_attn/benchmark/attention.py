"""Times of attention modules side by side: forward, with gradients, and step-by-step decoding.

All contenders take turns within one run, so what else the machine does hits all of them, and
medians are compared within a run only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.attention import SCHEMES, Attention, build_attention
from nas_attn.attention.functional import Implementation
from nas_attn.benchmark.decoding import FusedDecoder, filled, time_orders, time_steps
from nas_attn.benchmark.setting import TRAINING, Setting, Shape, Timing, is_able, take_turns
from nas_attn.fairseq_tools.models import fairseq_attention, stock_attention

BASELINE, STOCK = "torch sdpa", "fairseq"

LONGEST_EXPLICIT = 2048
"""Tokens up to which implementations that hold all scores of all heads are tried."""

SHAPES = (Shape(16, 32), Shape(8, 128), Shape(4, 512), Shape(1, 2048), Shape(1, 4096))
DECODING_SHAPES = (Shape(16, 512),)


class FusedMultiHead(nn.Module):
    """The baseline: multi-head attention as one writes it on torch's fused attention."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        query, key, value = (
            projection(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output


class TorchModule(nn.MultiheadAttention):
    """torch's own module, without weights, as its Transformer layers call it."""

    def forward(self, x: Tensor, causal: bool) -> Tensor:  # type: ignore[override]
        mask = nn.Transformer.generate_square_subsequent_mask(
            x.size(1), device=x.device, dtype=x.dtype
        )
        output, _ = super().forward(
            x, x, x, need_weights=False, attn_mask=mask if causal else None, is_causal=causal
        )
        return output


class StockModule(nn.Module):
    """fairseq's own attention; x comes and goes as (time, batch, width) there, so it is turned."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = stock_attention(embed_dim, num_heads)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x.transpose(0, 1)
        mask = x.new_full((x.size(0), x.size(0)), float("-inf")).triu(1) if causal else None
        output: Tensor = self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return output.transpose(0, 1)


class SchemeModule(nn.Module):
    """A scheme, computed as it chooses itself or by a given implementation."""

    def __init__(self, attention: Attention, implementation: Implementation | None) -> None:
        super().__init__()
        self.attention = attention
        attention.implementation = implementation

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        output: Tensor = self.attention(x, x, x, need_weights=False, is_causal=causal)[0]
        return output


class ReferenceModule(nn.Module):
    """A scheme as its paper writes it: each head with its own keys and values, and all scores."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        scheme = self.attention
        queries, shifts = scheme.queries(x), scheme.query_shifts()
        if shifts is not None:
            queries = queries + shifts[:, None]
        keys, values = scheme.keys(x), scheme.values(x)
        values = values if values.size(-1) else keys
        own = (t.repeat_interleave(queries.size(1) // t.size(1), dim=1) for t in (keys, values))
        keys, values = own
        scores = queries @ keys.transpose(-1, -2) * scheme.scale
        if causal:
            later = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        heads = scheme.mix_values(torch.softmax(scores, dim=-1) @ values)
        output: Tensor = scheme.out_proj(heads.transpose(1, 2).flatten(2))
        return output


def usual_schemes(setting: Setting) -> dict[str, Callable[[], Attention]]:
    """Every scheme at its usual sizes: how to build it, by the name under which it is timed."""
    width, heads = setting.embed_dim, setting.num_heads
    sizes: dict[str, list[dict[str, Any]]] = {
        "collaborative": [{"shared_dim": width // 4}, {"shared_dim": width // heads}],
        "grouped_query": [
            {"num_groups": 1 if heads % 2 else 2},
            {"num_groups": heads, "num_value_groups": 1},
            {"num_groups": 1 if heads % 2 else 2, "tied": True},
        ],
        "latent": [{"latent_dim": width // 2}, {"latent_dim": width // heads}],
    }
    found: dict[str, Callable[[], Attention]] = {}
    for scheme in SCHEMES:
        for options in sizes.get(scheme, [{}]):
            given = ", ".join(f"{option} {value}" for option, value in options.items())
            build = partial(build_attention, scheme, width, heads, **options)
            found[f"{scheme} ({given})" if given else scheme] = build
    return found


def contenders(
    setting: Setting, schemes: Sequence[str] = (), *, implementations: Sequence[Implementation] = ()
) -> dict[str, nn.Module]:
    """Who takes turns: the stock attentions and the schemes.

    Args:
        setting: Setting of the run.
        schemes: Names of schemes; all if empty.
        implementations: Names of those by which each scheme is timed as well; if there are any,
            also as its paper writes it.
    """
    width, heads = setting.embed_dim, setting.num_heads
    found: dict[str, nn.Module] = {
        BASELINE: FusedMultiHead(width, heads),
        "torch module": TorchModule(width, heads, batch_first=True),
        STOCK: StockModule(width, heads),
    }
    for name, build in usual_schemes(setting).items():
        if schemes and name.split()[0] not in schemes:
            continue
        found[name] = SchemeModule(build(), None)
        if implementations:
            found |= {
                f"{name}: {implementation}": SchemeModule(build(), implementation)
                for implementation in implementations
            }
            found[f"{name}: reference"] = ReferenceModule(build())
    return {name: module.to(setting.device, setting.dtype) for name, module in found.items()}


def time_attention(
    setting: Setting,
    shapes: Sequence[Shape] = SHAPES,
    decoding_shapes: Sequence[Shape] = DECODING_SHAPES,
    schemes: Sequence[str] = (),
    *,
    implementations: Sequence[Implementation] = (),
) -> Iterator[Timing]:
    """Time all contenders, shape by shape; who cannot do a shape is left out there.

    Args:
        setting: Setting of the run.
        shapes: Shapes for forward and forward_backward.
        decoding_shapes: Shapes for decode and reorder.
        schemes: Names of schemes; all if empty.
        implementations: Names of those by which each scheme is timed as well; if there are any,
            also as its paper writes it.
    """
    torch.set_num_threads(setting.threads)
    torch.manual_seed(1)
    field = contenders(setting, schemes, implementations=implementations)
    for shape in shapes:
        x, gradient = (setting.tensor(*shape, setting.embed_dim) for _ in range(2))
        able = {
            name: module
            for name, module in field.items()
            if shape.length <= LONGEST_EXPLICIT or not name.endswith((": explicit", ": reference"))
        }
        able = {
            name: module
            for name, module in able.items()
            if is_able(partial(_turn, module, x, gradient, setting, True), name, shape, setting)
        }
        for phase in TRAINING:
            turns = {
                name: partial(_turn, module, x, gradient, setting, phase == "forward_backward")
                for name, module in able.items()
            }
            yield from take_turns(phase, shape, turns, BASELINE, setting)
    yield from _time_decoding(setting, decoding_shapes, schemes)


def _time_decoding(
    setting: Setting, shapes: Sequence[Shape], schemes: Sequence[str]
) -> Iterator[Timing]:
    width, heads = setting.embed_dim, setting.num_heads
    decoders: dict[str, nn.Module] = {
        STOCK: stock_attention(width, heads),
        BASELINE: FusedDecoder(width, heads),
    }
    for name, build in usual_schemes(setting).items():
        if not schemes or name.split()[0] in schemes:
            decoders[name] = fairseq_attention(build())
    decoders = {n: m.to(setting.device, setting.dtype).eval() for n, m in decoders.items()}
    for shape in shapes:
        states = {name: filled(module, shape, setting) for name, module in decoders.items()}
        for phase, measure in (("decode", time_steps), ("reorder", time_orders)):
            turns = {
                name: partial(measure, module, states[name], shape, setting)
                for name, module in decoders.items()
            }
            yield from take_turns(phase, shape, turns, STOCK, setting)


def _turn(
    module: nn.Module, x: Tensor, gradient: Tensor, setting: Setting, backward: bool
) -> float:
    x = x.clone().requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        began = setting.now()
        output = module(x, setting.causal)
        if backward:
            output.backward(gradient)
        ended = setting.now()
    module.zero_grad()
    return ended - began
