"""What attention is called with, and whether a compiler, tracer or transform is watching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Implementation = Literal[
    "fused", "rows", "explicit", "blockwise", "shared_scores", "unpadded", "flex", "absorbed"
]
"""How attention is computed:

`fused`: torch's fused kernel for every head; unequal widths are padded with zeros.
`rows`: the same, the heads that share a key and a value stacked as rows of one query.
`explicit`: all scores at once, softmax, product with the values.
`blockwise`: `explicit` for some rows of one head at a time, recomputed for gradients.
`shared_scores`: for queries that are one query shifted for each head, one softmax for all heads.
`unpadded`: torch's kernels for keys and values of unequal widths, as they are.
`flex`: torch's FlexAttention, which compiles a kernel for keys and values of unequal widths.
`absorbed`: for `latent`, queries and outputs take over the maps from latents to keys and values.
"""

IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What is asked of an implementation: `attend`'s arguments besides the three tensors."""

    scale: float
    shifts: Tensor | None = None
    mask: Tensor | None = None
    is_causal: bool = False
    dropout: float = 0.0
    need_weights: bool = False


def is_eager() -> bool:
    """Whether tensors are numbers here, and not recorded by a compiler, tracer or transform."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def lengths_are_open() -> bool:
    """Whether lengths may be symbols: `torch.export` is recording."""
    return torch.compiler.is_compiling() and torch.compiler.is_exporting()
