"""Which implementation of attention is the fastest where: a table, by device and type.

`nas-attn bench attention --calibrate` measures a device and writes such a table, which
`use_thresholds` puts before the one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

ForUnequalWidths = Literal["fused", "unpadded", "flex", "blockwise"]
ForSharedHeads = Literal["fused", "rows"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where one implementation becomes faster than another.

    Args:
        source: Where the numbers come from, in words.
        device: Type of the device, such as cpu or cuda; None is any.
        capability: Compute capability of a CUDA device, such as 9.0; None is any.
        dtype: Type of the keys; None is any.
        explicit_max_scores: For keys and values of unequal widths: most scores of a head (queries
            times keys) for which `explicit` is the fastest.
        unequal_widths: What is the fastest for more scores, or the next best where that cannot do
            what is asked.
        one_head: What is the fastest for one head of keys and values, several queries and no other
            mask than one of keys.
        grouped_heads: Likewise for heads in groups.
        shared_scores_min_queries: Fewest queries for which `shared_scores` is the fastest; None if
            it never is.
        shared_scores_min_work: Fewest products of all heads' scores likewise.
    """

    source: str
    device: str | None = None
    capability: str | None = None
    dtype: str | None = None
    explicit_max_scores: int = 0
    unequal_widths: ForUnequalWidths = "fused"
    one_head: ForSharedHeads = "rows"
    grouped_heads: ForSharedHeads = "fused"
    shared_scores_min_queries: int | None = None
    shared_scores_min_work: int = 0

    def are_for(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether they were measured on such a device."""
        if self.device not in (None, device.type):
            return False
        if self.dtype is not None and DTYPES[self.dtype] != dtype:
            return False
        return self.capability is None or self.capability == capability_of(device)


BUILT_IN: tuple[Thresholds, ...] = (
    Thresholds(
        source="nas-attn bench attention on two cores of an AMD EPYC (Milan), torch 2.13, float32",
        device="cpu",
        explicit_max_scores=192 * 192,
        unequal_widths="blockwise",
        shared_scores_min_queries=24,
        shared_scores_min_work=2**24,
    ),
    # At 8x128, 32x512 and 8x2048 neither `explicit` nor `shared_scores` was ever faster, and `rows`
    # for heads in groups not by more than the spread; `unpadded` and `flex` were not measured.
    Thresholds(
        source="docs/measurements/2026-11-26-h200.md: NVIDIA H200, torch 2.11, bfloat16",
        device="cuda",
        capability="9.0",
        dtype="bfloat16",
    ),
    Thresholds(source="not measured: torch's fused kernels"),
)

_given: list[Thresholds] = []


def thresholds_for(device: torch.device, dtype: torch.dtype) -> Thresholds:
    """Thresholds of a device for keys of a type: of the first row of the table that fits."""
    for row in _given:
        if row.are_for(device, dtype):
            return row
    return next(row for row in BUILT_IN if row.are_for(device, dtype))


def put_before_built_in(table: Sequence[Thresholds]) -> None:
    """Look for thresholds in these rows first."""
    _given[:] = table


def capability_of(device: torch.device) -> str | None:
    """Compute capability of a CUDA device, such as 9.0; None of others."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"
