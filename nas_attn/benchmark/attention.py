"""Times of attention modules side by side: forward, with gradients, and step-by-step decoding.

All contenders take turns within one run, so what else the machine does hits all of them, and
medians are compared within a run only.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.attention import SCHEMES, Attention, build_attention
from nas_attn.attention.functional import IMPLEMENTATIONS, Implementation
from nas_attn.fairseq_tools.models import fairseq_attention, stock_attention

logger = logging.getLogger(__name__)

PHASES = ("forward", "forward_backward", "decode", "reorder")
BASELINE, STOCK = "torch sdpa", "fairseq"

LONGEST_EXPLICIT = 2048
"""Tokens up to which implementations that hold all scores of all heads are tried."""

DECODING_STEPS = 6
"""Steps in a row, as a decoder takes them; the first, which makes room, is left out."""

PREFIX_TOKENS = 1024
"""Tokens of a prefix that are taken in at a time: stock fairseq holds all their scores."""


class Shape(NamedTuple):
    """Sequences of a batch, and tokens of a sequence (when decoding: those decoded so far)."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read BATCHxLENGTH.

        Raises:
            ValueError: the text is not written so.
        """
        batch, cross, length = text.partition("x")
        if not (cross and batch.isdecimal() and length.isdecimal() and int(batch) and int(length)):
            raise ValueError(f"a shape is BATCHxLENGTH, such as 16x32, but {text!r} was given")
        return cls(int(batch), int(length))


SHAPES = (Shape(16, 32), Shape(8, 128), Shape(4, 512), Shape(1, 2048), Shape(1, 4096))
DECODING_SHAPES = (Shape(16, 512),)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contenders of a run have in common.

    Args:
        embed_dim, num_heads: Width and heads of the attention.
        device: cpu or cuda.
        dtype: Type of the tensors.
        threads: Threads of PyTorch. With one on a CPU, times are CPU time of the process.
        seconds: Seconds spent on each shape and phase, about.
        min_rounds: Turns of every contender, whatever they take.
        causal: Whether position t attends to positions 0..t.
    """

    embed_dim: int = 512
    num_heads: int = 8
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    seconds: float = 20.0
    min_rounds: int = 5
    causal: bool = False

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time() if self.threads == 1 else time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one contender took for one shape and phase.

    Args:
        phase: One of forward, forward_backward (with gradients of inputs and weights), decode (one
            step after `length` tokens) or reorder (of what that step keeps, as beam search does).
        batch, length, causal: Sizes of the inputs, and whether attention was causal.
        contender: Name of the contender.
        median_ms: Milliseconds, median over rounds.
        spread: Interquartile range over the median.
        ratio: This median over the baseline's: torch's fused attention, or, decoding, fairseq's.
        rounds: Number of rounds.
        peak_mb: Most memory of a turn beyond what lay there before it, megabytes; on CUDA only.
    """

    phase: str
    batch: int
    length: int
    causal: bool
    contender: str
    median_ms: float
    spread: float
    ratio: float
    rounds: int
    peak_mb: float | None


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
        "grouped_query": [{"num_groups": 1 if heads % 2 else 2}],
    }
    found: dict[str, Callable[[], Attention]] = {}
    for scheme in SCHEMES:
        for options in sizes.get(scheme, [{}]):
            given = ", ".join(f"{option} {value}" for option, value in options.items())
            build = partial(build_attention, scheme, width, heads, **options)
            found[f"{scheme} ({given})" if given else scheme] = build
    return found


def contenders(
    setting: Setting, schemes: Sequence[str] = (), *, implementations: bool = False
) -> dict[str, nn.Module]:
    """Who takes turns: the stock attentions and the schemes.

    Args:
        setting: Setting of the run.
        schemes: Names of schemes; all if empty.
        implementations: Whether to time each scheme by every implementation as well, and as its
            paper writes it.
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
                for implementation in IMPLEMENTATIONS
            }
            found[f"{name}: reference"] = ReferenceModule(build())
    return {name: module.to(setting.device, setting.dtype) for name, module in found.items()}


def time_attention(
    setting: Setting,
    shapes: Sequence[Shape] = SHAPES,
    decoding_shapes: Sequence[Shape] = DECODING_SHAPES,
    schemes: Sequence[str] = (),
    *,
    implementations: bool = False,
) -> Iterator[Timing]:
    """Time all contenders, shape by shape; an implementation that cannot do a scheme is left out.

    Args:
        setting: Setting of the run.
        shapes: Shapes for forward and forward_backward.
        decoding_shapes: Shapes for decode and reorder.
        schemes: Names of schemes; all if empty.
        implementations: Whether to time each scheme by every implementation as well, and as its
            paper writes it.
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
        able = {name: module for name, module in able.items() if _works(module, x, setting.causal)}
        for phase in PHASES[:2]:
            turns = {
                name: partial(_turn, module, x, gradient, setting, phase == "forward_backward")
                for name, module in able.items()
            }
            yield from _time(phase, shape, turns, BASELINE, setting)
    for shape in decoding_shapes:
        built = {name: fairseq_attention(build()) for name, build in usual_schemes(setting).items()}
        decoders = {STOCK: stock_attention(setting.embed_dim, setting.num_heads)} | {
            name: module
            for name, module in built.items()
            if not schemes or name.split()[0] in schemes
        }
        kept = {
            name: _prefix(module.to(setting.device, setting.dtype).eval(), shape, setting)
            for name, module in decoders.items()
        }
        for phase, turn in (("decode", _decode), ("reorder", _reorder)):
            turns = {
                name: partial(turn, module, kept[name], shape, setting)
                for name, module in decoders.items()
            }
            yield from _time(phase, shape, turns, STOCK, setting)


def _works(module: nn.Module, x: Tensor, causal: bool) -> bool:
    try:
        with torch.no_grad():
            module(x, causal)
    except ValueError:
        return False
    return True


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


def _prefix(module: Any, shape: Shape, setting: Setting) -> dict[str, Any]:
    """What decoding keeps of the tokens decoded so far."""
    state: dict[str, Any] = {}
    prefix = setting.tensor(shape.length, shape.batch, setting.embed_dim)
    with torch.no_grad():
        for tokens in torch.split(prefix, PREFIX_TOKENS):
            module(tokens, tokens, tokens, incremental_state=state, need_weights=False)
    return state


def _decode(module: Any, prefix: dict[str, Any], shape: Shape, setting: Setting) -> float:
    """Seconds of a step, median of some steps in a row after a prefix."""
    state = copy.deepcopy(prefix)
    token = setting.tensor(1, shape.batch, setting.embed_dim)
    taken = []
    with torch.no_grad():
        for _ in range(1 + DECODING_STEPS):
            began = setting.now()
            module(token, token, token, incremental_state=state, need_weights=False)
            taken.append(setting.now() - began)
    return statistics.median(taken[1:])


def _reorder(module: Any, prefix: dict[str, Any], shape: Shape, setting: Setting) -> float:
    """Seconds to put all hypotheses in another order, median of some in a row."""
    state = copy.deepcopy(prefix)
    taken = []
    with torch.no_grad():
        for _ in range(1 + DECODING_STEPS):
            order = torch.randint(shape.batch, (shape.batch,), device=setting.device)
            began = setting.now()
            module.reorder_incremental_state(state, order)
            taken.append(setting.now() - began)
    return statistics.median(taken[1:])


def _time(
    phase: str,
    shape: Shape,
    turns: Mapping[str, Callable[[], float]],
    baseline: str,
    setting: Setting,
) -> Iterator[Timing]:
    """Let everybody take turns for the set time."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    peaks: dict[str, float] = {}
    began, rounds = time.perf_counter(), 0
    while rounds < setting.min_rounds or time.perf_counter() - began < setting.seconds:
        for name, turn in turns.items():
            before = _reset_peak(setting)
            seconds = turn()
            if rounds or setting.min_rounds == 1:  # the first round warms up
                taken[name].append(seconds)
            if before is not None:
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        rounds += 1
    base = statistics.median(taken[baseline])
    logger.info("%s %s: %d rounds, %s %.2f ms", phase, shape, rounds, baseline, base * 1e3)
    for name, seconds_taken in taken.items():
        median = statistics.median(seconds_taken)
        low, _, high = statistics.quantiles(seconds_taken, n=4) if rounds > 2 else [median] * 3
        yield Timing(
            phase=phase,
            batch=shape.batch,
            length=shape.length,
            causal=setting.causal and phase in PHASES[:2],
            contender=name,
            median_ms=median * 1e3,
            spread=(high - low) / median,
            ratio=median / base,
            rounds=len(seconds_taken),
            peak_mb=peaks.get(name),
        )


def _reset_peak(setting: Setting) -> int | None:
    if setting.device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()
