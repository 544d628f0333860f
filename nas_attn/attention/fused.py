"""Attention by torch's `scaled_dot_product_attention`, which has kernels of its own for CUDA.

Which of them takes a call is torch's choice, but for two things. Heads in groups are handed over
as they are only where a fused kernel reads them so: else torch (2.13) falls back to computing all
scores at once. And cuDNN is not given masks: its gradients of queries can be NaN for lengths such
as 64, 192 or 704 (https://github.com/pytorch/pytorch/issues/196678; torch 2.11 and later, Hopper).
torch's other kernels give zeros for rows that may attend to nothing, and finite gradients.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas_attn.attention.call import AttentionCall, is_eager

MATH = 0
"""What torch calls its way without a fused kernel, by number."""

CUDNN_DEVICES = ("cuda",)


def attend_fused(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    """Attend with every head; keys and values of unequal widths are padded with zeros."""
    value_width = values.size(-1)
    width = max(keys.size(-1), value_width)
    queries, keys, values = (_widen(tensor, width) for tensor in (queries, keys, values))
    return attend_unpadded(queries, keys, values, call)[..., :value_width]


def attend_unpadded(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    """Attend with every head.

    On CUDA the memory-efficient kernel and cuDNN's take values of another width than keys (in steps
    of 8 numbers of 16 bits or 4 of float32); flash attention and the kernel for CPUs do not, and
    torch then computes all scores at once.
    """
    with _kernels(call, keys.device):
        grouped = _reads_groups(queries, keys, values, call)
        num_heads = keys.size(1) if grouped else queries.size(1)
        return F.scaled_dot_product_attention(
            queries,
            _expand_heads(keys, num_heads),
            _expand_heads(values, num_heads),
            attn_mask=call.mask,
            dropout_p=call.dropout,
            is_causal=call.is_causal,
            scale=call.scale,
            enable_gqa=grouped,
        )


def attend_with_rows(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> Tensor:
    """Attend with the heads that share a key and a value stacked as rows of one query.

    Where other heads share keys than values, those that share both are stacked.
    """
    batch, heads, time, width = queries.shape
    groups = math.lcm(keys.size(1), values.size(1))
    with _kernels(call, keys.device):
        output = F.scaled_dot_product_attention(
            queries.reshape(batch, groups, heads // groups * time, width),  # n / g heads as rows
            _expand_heads(keys, groups),
            _expand_heads(values, groups),
            attn_mask=call.mask,
            dropout_p=call.dropout,
            scale=call.scale,
        )
    return output.reshape(batch, heads, time, width)  # (B, n, T, d_v)


def _reads_groups(queries: Tensor, keys: Tensor, values: Tensor, call: AttentionCall) -> bool:
    """Whether torch has a fused kernel that reads heads in groups where they are."""
    if not 1 < keys.size(1) == values.size(1) < queries.size(1):
        return False  # one head is expanded without a copy
    if keys.device.type == "cpu":
        return True
    if not is_eager():  # nothing to ask, and a copy can be fused with what comes before it
        return False
    choice: int = torch._fused_sdp_choice(
        queries,
        keys,
        values,
        call.mask,
        call.dropout,
        call.is_causal,
        scale=call.scale,
        enable_gqa=True,
    )
    return choice != MATH


def _kernels(call: AttentionCall, device: torch.device) -> AbstractContextManager[None]:
    """Within this, torch takes no kernel that could be wrong for the call."""
    if call.mask is None or device.type not in CUDNN_DEVICES:
        return nullcontext()
    return sdpa_kernel(_on_but_cudnn()) if torch.compiler.is_compiling() else _CudnnOff()


def _on_but_cudnn() -> list[SDPBackend]:
    """What is on besides cuDNN as a graph is made; compilers do not follow `_CudnnOff`."""
    cuda: Any = torch.backends.cuda
    found = []
    if cuda.flash_sdp_enabled():
        found.append(SDPBackend.FLASH_ATTENTION)
    if cuda.mem_efficient_sdp_enabled():
        found.append(SDPBackend.EFFICIENT_ATTENTION)
    if cuda.math_sdp_enabled():
        found.append(SDPBackend.MATH)
    return found


# As torch.compiler.assume_constant_result does, which imports the compiler: 3 s in every process.
_on_but_cudnn._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _CudnnOff:
    """cuDNN's attention is not taken; whatever else is off stays off.

    torch has one switch for all threads: the first to come turns it off, the last to leave back.
    """

    _lock = Lock()
    _within = 0
    _was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if _CudnnOff._within == 0:
                cuda: Any = torch.backends.cuda
                _CudnnOff._was_on = cuda.cudnn_sdp_enabled()
                cuda.enable_cudnn_sdp(False)
            _CudnnOff._within += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            _CudnnOff._within -= 1
            if _CudnnOff._within == 0:
                torch.backends.cuda.enable_cudnn_sdp(_CudnnOff._was_on)


def _expand_heads(shared: Tensor, num_heads: int) -> Tensor:
    batch, groups, length, width = shared.shape
    if groups == num_heads:
        return shared
    if groups == 1:
        return shared.expand(batch, num_heads, length, width)
    return shared.repeat_interleave(num_heads // groups, dim=1)


def _widen(tensor: Tensor, width: int) -> Tensor:
    """Pad the last axis with zeros, which change neither scores nor the values kept."""
    missing = width - tensor.size(-1)
    return F.pad(tensor, (0, missing)) if missing else tensor
