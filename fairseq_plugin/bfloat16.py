"""Training with the matrix products of linear layers in bfloat16, and all else in float32.

CPUs with bfloat16 instructions multiply several times as fast in it, and most of a training's time
on a CPU are the products of linear layers. Weights, their gradients and the optimizer's state,
softmax, normalisation and the loss stay in float32, so nothing is scaled. fairseq's own `--bf16`
fails without a TPU, and torch's autocast takes more in bfloat16 than what gains by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` of float32, its three products in bfloat16.

    Products are summed in float32 and rounded to bfloat16 once, then are float32 again.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """Shapes as of `linear`: (..., in), (out, in) and (out,) give (..., out)."""
        rows, matrix = input.flatten(0, -2).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rows, matrix)
        output = (rows @ matrix.T).float()
        if bias is not None:
            output += bias
        return output.reshape(*input.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, matrix = ctx.saved_tensors
        of_rows = gradient.flatten(0, -2)
        small = of_rows.bfloat16()
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            (small @ matrix).float().view(*gradient.shape[:-1], -1) if needs_input else None,
            (small.T @ rows).float() if needs_weight else None,
            of_rows.sum(0) if needs_bias else None,
        )


class BFloat16Linear(TorchFunctionMode):
    """Within it, what `torch.nn.functional.linear` is given in float32 is multiplied in bfloat16.

    Vectors, and what another precision was chosen for, are left alone.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    is_single = input.dtype == weight.dtype == torch.float32
    if not is_single or input.dim() < 2 or torch.is_autocast_enabled(input.device.type):
        return F.linear(input, weight, bias)
    output: Tensor = Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return output


class MayTrainInBFloat16:
    """Mix-in before a model of the plugin: takes the flag, and heeds it in training."""

    bfloat16_linear: bool

    @classmethod
    def add_args(cls, parser: Any) -> None:
        super().add_args(parser)  # type: ignore[misc]
        parser.add_argument(
            "--bfloat16-linear",
            action="store_true",
            help="train with the matrix products of linear layers in bfloat16, all else in float32 "
            "and validation too: about twice as fast on CPUs with bfloat16 instructions",
        )

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Any:
        model = super().build_model(args, task)  # type: ignore[misc]
        model.bfloat16_linear = bool(getattr(args, "bfloat16_linear", False))
        return model

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        with products_as_in(self):
            return super().forward(*args, **named)  # type: ignore[misc]


def products_as_in(model: nn.Module) -> AbstractContextManager[Any]:
    """What a model's products are computed in now, for its teacher, too."""
    is_on = model.training and getattr(model, "bfloat16_linear", False)
    return BFloat16Linear() if is_on else nullcontext()
