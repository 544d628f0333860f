"""Times of attention modules side by side: forward, with gradients, and step-by-step decoding.

All contenders take turns within one run, so what else the machine does hits all of them, and
medians are compared within a run only.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.attention import SCHEMES, Attention, build_attention
from nas_attn.attention.functional import FORMS, Form
from nas_attn.training.model import fairseq_attention, stock_attention

logger = logging.getLogger(__name__)

Phase = Literal["forward", "forward_backward", "decode"]

BASELINE = "torch sdpa"
STOCK = "fairseq"
LONGEST_REFERENCE = 2048
"""Tokens up to which forms that hold all scores of all heads at once are tried."""

WARM_UP_ROUNDS = 2
STEPS_A_ROUND = 8


class Shape(NamedTuple):
    """Sequences of a batch, and tokens of a sequence."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


SHAPES = (Shape(16, 32), Shape(8, 128), Shape(4, 512), Shape(1, 2048), Shape(1, 4096))
DECODING_SHAPE = Shape(16, 512)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contenders of a run have in common.

    Args:
        embed_dim, num_heads: of the attention.
        device, dtype: of the tensors.
        threads: of PyTorch. With one thread on a CPU, time is the process's CPU time.
        seconds: spent on a shape and phase, roughly.
        min_rounds: turns of every contender, whatever they take.
        causal: let position t attend to positions 0..t.
    """

    embed_dim: int = 512
    num_heads: int = 8
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    seconds: float = 20.0
    min_rounds: int = 5
    causal: bool = False


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one contender took for one shape and phase.

    Args:
        phase: forward, forward_backward (with gradients of inputs and weights) or decode (one step
            of a decoder that holds `length` tokens).
        batch, length, causal: what was computed.
        contender: its name.
        parameters: of the module.
        cache: numbers that decoding keeps for each token.
        median_ms: milliseconds, median over rounds.
        spread: interquartile range over the median.
        ratio: of the medians of this contender and the baseline: torch's fused attention, or
            fairseq's own attention for decode.
        rounds: turns.
        peak_mb: most memory of a turn beyond what lay there before, in megabytes; on CUDA only.
    """

    phase: Phase
    batch: int
    length: int
    causal: bool
    contender: str
    parameters: int
    cache: int
    median_ms: float
    spread: float
    ratio: float
    rounds: int
    peak_mb: float | None


class FusedMultiHead(nn.Module):
    """The baseline: one projection to queries, keys and values, torch's fused attention, output."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        heads = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, n, h)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A module under a name, called as `attend(module, x, causal)`."""

    name: str
    module: nn.Module
    attend: Callable[[nn.Module, Tensor, bool], Tensor]
    longest: int | None = None

    @property
    def scheme(self) -> Attention | None:
        return self.module if isinstance(self.module, Attention) else None

    @property
    def cache_size(self) -> int:
        scheme = self.scheme
        return 2 * self.module.embed_dim if scheme is None else scheme.cache_size()  # type: ignore[operator,return-value]


def usual_options(scheme: str, embed_dim: int, num_heads: int) -> list[dict[str, int]]:
    """The sizes at which a scheme is tried: those of its paper where it names one."""
    if scheme == "collaborative":
        return [{"shared_dim": embed_dim // 4}, {"shared_dim": embed_dim // num_heads}]
    if scheme == "grouped_query":
        return [{"num_groups": 2 if num_heads % 2 == 0 else 1}]
    return [{}]
