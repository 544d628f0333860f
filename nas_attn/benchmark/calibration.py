"""Thresholds of a device: implementations of attention side by side, and a table that fits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nas_attn.attention.functional import Implementation, attend
from nas_attn.attention.thresholds import Thresholds, capability_of
from nas_attn.benchmark.setting import TRAINING, Setting, Shape, Timing, is_able, take_turns

CALIBRATION_SHAPES = tuple(
    Shape(*shape)
    for shape in ((16, 16), (16, 32), (8, 64), (8, 128), (4, 192), (4, 256), (4, 512), (1, 1024))
)

LONGEST_EXPLICIT = 2048
"""Tokens up to which `explicit` is tried, which holds all scores of all heads."""

MARGIN = 0.05
"""Share of the time that a choice must save on average to be preferred to the plain one."""

Costs = Mapping[str, Mapping[Shape, float]]
"""Logarithms of times, forward and with gradients together, by implementation and shape."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What several implementations can do.

    Args:
        key_heads, value_heads: By the number of heads.
        wide_keys: Whether keys are twice as wide as values.
        shifted: Whether heads shift one query.
        implementations: Those that are tried; the first is the plain choice.
    """

    key_heads: Callable[[int], int]
    value_heads: Callable[[int], int]
    wide_keys: bool = False
    shifted: bool = False
    implementations: tuple[Implementation, ...]

    def tensors(self, shape: Shape, setting: Setting) -> dict[str, Tensor]:
        heads = setting.num_heads
        width = setting.embed_dim // heads
        key_width = 2 * width if self.wide_keys else width
        batch, length = shape
        made = {
            "queries": setting.tensor(batch, 1 if self.shifted else heads, length, key_width),
            "keys": setting.tensor(batch, self.key_heads(heads), length, key_width),
            "values": setting.tensor(batch, self.value_heads(heads), length, width),
        }
        return made | ({"shifts": setting.tensor(heads, key_width)} if self.shifted else {})


def _one(heads: int) -> int:
    return 1


def _half(heads: int) -> int:
    return heads // 2


CASES = {
    "one head": Case(key_heads=_one, value_heads=_one, implementations=("rows", "fused")),
    "groups": Case(key_heads=_half, value_heads=_half, implementations=("fused", "rows")),
    "shifts": Case(
        key_heads=_one, value_heads=_one, shifted=True, implementations=("rows", "shared_scores")
    ),
    "unequal widths": Case(
        key_heads=_one,
        value_heads=lambda heads: heads,
        wide_keys=True,
        implementations=("fused", "explicit", "blockwise", "unpadded", "flex"),
    ),
}
"""Those that compile for minutes come last, so that a run that is stopped then has the others."""


def time_cases(setting: Setting, shapes: Sequence[Shape]) -> Iterator[Timing]:
    """Time the implementations of every case, forward and with gradients.

    Args:
        setting: Setting of the run.
        shapes: Batches and lengths.
    """
    torch.set_num_threads(setting.threads)
    torch.manual_seed(1)
    for name, case in CASES.items():
        if setting.num_heads % 2 and name == "groups":
            continue
        for shape in shapes:
            tensors = case.tensors(shape, setting)
            able = [
                i
                for i in case.implementations
                if (i != "explicit" or shape.length <= LONGEST_EXPLICIT)
                and is_able(
                    partial(_turn, tensors, i, setting, True), f"{name}: {i}", shape, setting
                )
            ]
            for phase in TRAINING:
                backward = phase == "forward_backward"
                turns = {
                    f"{name}: {i}": partial(_turn, tensors, i, setting, backward) for i in able
                }
                baseline = f"{name}: {case.implementations[0]}"
                yield from take_turns(phase, shape, turns, baseline, setting)


def _turn(
    tensors: Mapping[str, Tensor],
    implementation: Implementation,
    setting: Setting,
    backward: bool,
) -> float:
    inputs: dict[str, Any] = {
        name: tensor.detach().requires_grad_(backward) for name, tensor in tensors.items()
    }
    with torch.set_grad_enabled(backward):
        began = setting.now()
        output, _ = attend(
            **inputs,
            scale=inputs["keys"].size(-1) ** -0.5,
            is_causal=setting.causal,
            implementation=implementation,
        )
        if backward:
            torch.autograd.backward(output, torch.ones_like(output))
        return setting.now() - began


def fit_thresholds(timings: Sequence[Timing], setting: Setting, source: str) -> Thresholds:
    """The row of a table by which the least time would have been taken.

    What is not the plain choice must save `MARGIN` of the time on average.

    Args:
        timings: Those of `time_cases`.
        setting: Setting of the run.
        source: What the row says of where it comes from.
    """
    device = torch.device(setting.device)
    costs = {name: _costs(timings, name) for name in CASES}
    scores, widths = _fit_unequal(costs["unequal widths"])
    queries, work = _fit_shared(costs["shifts"], setting)
    return Thresholds(
        source=source,
        device=device.type,
        capability=capability_of(device),
        dtype=str(setting.dtype).removeprefix("torch."),
        explicit_max_scores=scores,
        unequal_widths=widths,
        one_head="fused" if _saves(costs["one head"], "rows", "fused") else "rows",
        grouped_heads="rows" if _saves(costs["groups"], "fused", "rows") else "fused",
        shared_scores_min_queries=queries,
        shared_scores_min_work=work,
    )


def _costs(timings: Sequence[Timing], case: str) -> dict[str, dict[Shape, float]]:
    found: dict[str, dict[Shape, float]] = {}
    for timing in timings:
        name, _, implementation = timing.contender.partition(": ")
        if name == case:
            of_shapes = found.setdefault(implementation, {})
            shape = Shape(timing.batch, timing.length)
            of_shapes[shape] = of_shapes.get(shape, 0.0) + math.log(timing.median_ms)
    return found


def _saves(costs: Costs, plain: str, other: str) -> bool:
    if other not in costs:
        return False
    saved = sum(costs[plain][shape] - cost for shape, cost in costs[other].items())
    return saved > _least(costs[other])


def _least(shapes: Mapping[Shape, float]) -> float:
    """What must be saved over all shapes: each counts twice, forward and with gradients."""
    return -math.log(1 - MARGIN) * 2 * len(shapes)


def _fit_unequal(costs: Costs) -> tuple[int, Any]:
    """`explicit_max_scores`, and the implementation for more scores."""
    plain, explicit = costs.get("fused", {}), costs.get("explicit", {})
    rest = [
        name for name, found in costs.items() if name != "explicit" and set(found) == set(plain)
    ]
    limits = [0, *sorted({shape.length**2 for shape in explicit})]

    def total(limit: int, name: str) -> float:
        return sum(
            explicit[shape] if shape.length**2 <= limit and shape in explicit else cost
            for shape, cost in costs[name].items()
        )

    best = min(product(limits, rest), key=lambda choice: total(*choice), default=None)
    if best is None or sum(plain.values()) - total(*best) <= _least(plain):
        return 0, "fused"
    return best


def _fit_shared(costs: Costs, setting: Setting) -> tuple[int | None, int]:
    """Fewest queries and least work for which `shared_scores` is taken; no queries if never."""
    plain, shared = costs.get("rows", {}), costs.get("shared_scores", {})
    work = {shape: shape.batch * setting.embed_dim * shape.length**2 for shape in shared}

    def total(queries: int, least: int) -> float:
        return sum(
            shared[shape]
            if shape in shared and shape.length >= queries and work[shape] >= least
            else cost
            for shape, cost in plain.items()
        )

    choices = product({shape.length for shape in shared}, set(work.values()))
    best = min(sorted(choices, reverse=True), key=lambda choice: total(*choice), default=None)
    if best is None or sum(plain.values()) - total(*best) <= _least(plain):
        return None, 0
    return best
