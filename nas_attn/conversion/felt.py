"""What the loss of any PyTorch model feels of its attention, and what modules are trained on alone.

Gradients of the loss at the outputs of attention say how much an error of each output counts. They
are taken of the loss itself: nothing is known here of how it would look with other labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion.distillation import DistillationData
from nas_attn.conversion.metric import RecordedCall, recorded, run
from nas_attn.errors import NasAttnError

STEP_TOKENS = 1024
"""Queries of one step of distillation, about."""
HELD_OUT = 9
"""One call in so many is held out."""
LEAST_CALLS = 2 * HELD_OUT


@dataclass(frozen=True)
class Felt:
    """Attention on one batch, and gradients of the summed loss at its outputs, by name.

    Args:
        losses: Losses of the batch, as they were given (N,).
        calls: Calls of each module.
        outputs: Outputs (B, T, embed_dim), one for each call.
        gradients: Gradients at these.
    """

    losses: Tensor
    calls: Mapping[str, Sequence[RecordedCall]]
    outputs: Mapping[str, Sequence[Tensor]]
    gradients: Mapping[str, Sequence[Tensor]]


def feel(attention: Mapping[str, Attention], losses: Callable[[], Tensor]) -> Felt:
    """Run a model on a batch, and take gradients.

    Args:
        attention: Attention modules of the model, by name.
        losses: Function that runs it and gives its losses.

    Raises:
        NasAttnError: The losses have no gradient.
    """
    with torch.enable_grad(), recorded(attention) as calls, _outputs(attention) as outputs:
        given = losses()
    if not isinstance(given, Tensor) or not given.requires_grad:
        raise NasAttnError(
            "the loss has no gradient: it must be a tensor that is computed from what the model "
            "returns, without torch.no_grad"
        )
    at = [output for some in outputs.values() for output in some]
    found = iter(torch.autograd.grad(given.sum(), at, allow_unused=True, materialize_grads=True))
    return Felt(
        losses=given.detach().flatten(),
        calls={name: [call.with_padding() for call in some] for name, some in calls.items()},
        outputs={name: [output.detach() for output in some] for name, some in outputs.items()},
        gradients={name: [next(found) for _ in some] for name, some in outputs.items()},
    )


@contextmanager
def _outputs(attention: Mapping[str, Attention]) -> Iterator[dict[str, list[Tensor]]]:
    """The outputs of modules while a model runs, as they come."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in attention}
    handles = []
    for name, module in attention.items():

        def keep(_: Any, __: Any, output: Tensor, name: str = name) -> None:
            if not output.requires_grad:  # all that lies below is frozen
                output.requires_grad_()
            outputs[name].append(output)

        handles.append(module.out_proj.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def told(felt: Felt, name: str, module: Attention) -> Tensor:
    """What gradients say of the loss of each example (N,) if a module took another's place.

    Args:
        felt: A batch of as many examples as it has losses.
        name: Name of the module whose place it takes.
        module: Converted module.

    Raises:
        NasAttnError: Calls and losses have different numbers of examples.
    """
    total = torch.zeros(len(felt.losses), dtype=torch.float64)
    triples = zip(felt.calls[name], felt.outputs[name], felt.gradients[name], strict=True)
    for call, output, gradient in triples:
        if len(call.query) != len(total):
            raise NasAttnError(
                f"the loss gives {len(total)} numbers for a batch of {len(call.query)} examples: "
                "scores by gradients need one for each; measure instead"
            )
        change = run(module, call) - output
        change = change.masked_fill(~call.valid_queries[..., None], 0.0)
        total += (gradient * change).double().sum((1, 2)).cpu()
    return total


def metrics_of(
    attention: Mapping[str, Attention], batches: Sequence[Callable[[], Tensor]]
) -> dict[str, Tensor]:
    """How much errors of outputs count: the mean of g^T g (embed_dim, embed_dim) of each module.

    Args:
        attention: Attention modules of the model, by name.
        batches: For each batch the function that runs the model and gives its losses.

    Raises:
        NasAttnError: The losses have no gradient.
    """
    metrics = {name: torch.zeros(m.embed_dim, m.embed_dim) for name, m in attention.items()}
    for losses in batches:
        felt = feel(attention, losses)
        for name, metric in metrics.items():
            for call, gradient in zip(felt.calls[name], felt.gradients[name], strict=True):
                some = gradient[call.valid_queries].float()
                metric += (some.t() @ some).cpu()
    return metrics


def distillation_data(
    calls: Sequence[RecordedCall], metric: Tensor | None = None
) -> DistillationData:
    """Recorded calls as what a converted module is trained on alone, some of them held out.

    Args:
        calls: Calls of the trained module.
        metric: Weights of errors (see `metrics_of`); all directions count alike if left out.

    Raises:
        NasAttnError: There are fewer than two sequences.
    """
    rows = [max(1, STEP_TOKENS // call.query.size(1)) for call in calls]
    parts = [part for call, count in zip(calls, rows, strict=True) for part in _parts(call, count)]
    while len(parts) < LEAST_CALLS and any(len(part.query) > 1 for part in parts):
        parts = [half for part in parts for half in _parts(part, (len(part.query) + 1) // 2)]
    if len(parts) < 2:
        raise NasAttnError("to distil, calibration data must hold two sequences at least")
    held_out = set(range(HELD_OUT // 2, len(parts), HELD_OUT)) or {len(parts) - 1}
    return DistillationData(
        calls=[part for number, part in enumerate(parts) if number not in held_out],
        held_out=[part for number, part in enumerate(parts) if number in held_out],
        metric=metric,
    )


def _parts(call: RecordedCall, count: int) -> list[RecordedCall]:
    """A call as calls of so many sequences at most."""
    size = len(call.query)
    return [_rows(call, slice(start, start + count)) for start in range(0, size, count)]


def _rows(call: RecordedCall, rows: slice) -> RecordedCall:
    size = len(call.query)
    mask = call.attn_mask
    if mask is not None and mask.dim() == 3:
        mask = mask.view(size, -1, *mask.shape[1:])[rows].flatten(0, 1)
    elif mask is not None and mask.dim() == 4 and len(mask) == size:
        mask = mask[rows]
    padding, queries = call.key_padding_mask, call.query_padding_mask
    key = call.key[rows]
    return replace(
        call,
        query=call.query[rows],
        key=key,
        value=key if call.value is call.key else call.value[rows],
        attn_mask=mask,
        key_padding_mask=None if padding is None else padding[rows],
        query_padding_mask=None if queries is None else queries[rows],
    )
