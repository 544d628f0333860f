"""A run of the benchmark: its setting, and turns that contenders take."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

TRAINING = ("forward", "forward_backward")

WARM_UP_ROUNDS = 3
"""Rounds that do not count on a GPU, which compiles, chooses kernels and raises its clock; on a CPU
the first does not."""


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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contenders of a run have in common.

    Args:
        embed_dim, num_heads: Width and heads of the attention.
        device: cpu or cuda.
        dtype: Type of the tensors.
        threads: Threads of PyTorch. With one on a CPU, times are CPU time of the process.
        seconds: Seconds spent on each shape and phase, about.
        min_rounds: Fewest turns of every contender that count, whatever they take.
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
        rounds: Number of rounds that count.
        peak_mb: Most memory of any turn that counts beyond what lay there before it, megabytes; on
            CUDA only.
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


def is_able(turn: Callable[[], object], name: str, shape: Shape, setting: Setting) -> bool:
    """Whether a contender can take a turn, which is tried; why not is logged.

    Args:
        turn: Its turn, with gradients.
        name: Its name.
        shape, setting: What is timed.
    """
    try:
        turn()
    except ValueError as error:  # it does not do what is asked
        logger.debug("%s %s is left out: %s", name, shape, error)
    except RuntimeError as error:  # too little memory, or a compiler that fails, among others
        said = str(error).strip().partition("\n")[0]
        logger.warning("%s %s is left out: %s: %s", name, shape, type(error).__name__, said)
    else:
        return True
    if setting.device == "cuda":
        torch.cuda.empty_cache()
    return False


def take_turns(
    phase: str,
    shape: Shape,
    turns: Mapping[str, Callable[[], float]],
    baseline: str,
    setting: Setting,
) -> Iterator[Timing]:
    """Let everybody take turns for the set time; nobody if the baseline is not there.

    Args:
        phase, shape: What is timed.
        turns: Take a turn and return its seconds, by contender.
        baseline: Contender whose time is one.
        setting: Setting of the run.
    """
    if baseline not in turns:
        logger.warning("%s %s is not timed, as %s cannot do it", phase, shape, baseline)
        return
    warm_up = WARM_UP_ROUNDS if setting.device == "cuda" else 1
    taken: dict[str, list[float]] = {name: [] for name in turns}
    peaks: dict[str, float] = {}
    began, rounds = time.perf_counter(), 0
    least = setting.min_rounds + warm_up
    while rounds < least or time.perf_counter() - began < setting.seconds:
        for name, turn in turns.items():
            before = _reset_peak(setting)
            seconds = turn()
            if rounds < warm_up:
                continue
            taken[name].append(seconds)
            if before is not None:
                peak = (torch.cuda.max_memory_allocated() - before) / 2**20
                peaks[name] = max(peak, peaks.get(name, 0.0))
        rounds += 1
    base = statistics.median(taken[baseline])
    counted = rounds - warm_up
    logger.info("%s %s: %d rounds, %s %.2f ms", phase, shape, counted, baseline, base * 1e3)
    for name, seconds_taken in taken.items():
        median = statistics.median(seconds_taken)
        low, _, high = statistics.quantiles(seconds_taken, n=4) if counted > 1 else [median] * 3
        yield Timing(
            phase=phase,
            batch=shape.batch,
            length=shape.length,
            causal=setting.causal and phase in TRAINING,
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
