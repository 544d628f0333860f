"""What converted modules of a fairseq model are trained on alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_attn.conversion import RecordedCall, recorded
from nas_attn.conversion.distillation import DistillationData
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.felt import feel
from nas_attn.fairseq_tools.trained import Batches, TrainedModel, load_batches, spread

TOKENS = 54 * 1024
"""Of the training set, those held out among them."""
BATCH_TOKENS = 1024
HELD_OUT = 9
"""One batch in so many is held out."""
LEAST_BATCHES = 2 * HELD_OUT
MAX_BYTES = 512 * 2**20
"""What recorded inputs may take; of wide models fewer tokens are recorded."""
STORED = torch.bfloat16
"""Type of recorded inputs: the trained module answers to what is stored, so nothing is lost."""
FISHER_BATCHES = 16
"""So many batches' gradients are taken."""
SEED = 1


def distillation_data(trained: TrainedModel, data: Path) -> dict[str, DistillationData]:
    """What every attention module is called with on much of the training set, and what the loss
    feels of its outputs.

    Args:
        trained: Trained model.
        data: Binarised data.

    Returns:
        The data of each module, by its place.

    Raises:
        UsageError: the data do not fit the model, or there are too few.
    """
    batches = _split(load_batches(trained, data, "train", BATCH_TOKENS))
    count = min(len(batches.lines), _max_tokens(trained) // BATCH_TOKENS)
    held_out = set(range(HELD_OUT // 2, count, HELD_OUT)) or {count - 1}
    felt = [number for number in range(count) if number not in held_out]
    felt = felt[:: max(1, len(felt) // FISHER_BATCHES)]
    attention = trained.attention()
    metrics = {
        place: torch.zeros(module.embed_dim, module.embed_dim)
        for place, module in attention.items()
    }
    calls: dict[str, tuple[list[RecordedCall], list[RecordedCall]]]
    calls = {place: ([], []) for place in attention}
    generator = torch.Generator().manual_seed(SEED)
    for number, sample in enumerate(spread(batches, count)):
        with recorded(attention) as seen, torch.set_grad_enabled(number in felt):
            if number in felt:
                gradients = feel(trained, sample, generator).of_draws[0]
            else:
                trained.model(**sample["net_input"])
        stored: dict[Any, Tensor] = {}
        for place, of_module in seen.items():
            for call in of_module:
                if number in felt:
                    some = gradients[place][call.valid_queries]
                    metrics[place] += some.t() @ some
                calls[place][number in held_out].append(_stored(call, stored))
    return {
        place: DistillationData(calls=taught, held_out=asked, metric=metrics[place])
        for place, (taught, asked) in calls.items()
    }


def _max_tokens(trained: TrainedModel) -> int:
    """Tokens whose inputs of all modules take no more than `MAX_BYTES`, roughly."""
    widths = sum(
        module.embed_dim + (module.kdim if place.startswith("encoder_decoder") else 0)
        for place, module in trained.attention().items()
    )
    most = MAX_BYTES // (STORED.itemsize * max(1, widths))
    return max(LEAST_BATCHES * BATCH_TOKENS, min(TOKENS, most))


def _split(batches: Batches) -> Batches:
    """Smaller batches where there are few, so that some can be held out.

    Raises:
        UsageError: there is one sequence only.
    """
    lines = [list(some) for some in batches.lines]
    while len(lines) < LEAST_BATCHES and any(len(some) > 1 for some in lines):
        halves = [(some[: len(some) // 2], some[len(some) // 2 :]) for some in lines]
        lines = [half for pair in halves for half in pair if half]
    if len(lines) < 2:
        raise UsageError("to distil, the training set must hold two sequences at least")
    return replace(batches, lines=lines)


def _stored(call: RecordedCall, known: dict[Any, Tensor]) -> RecordedCall:
    """A call as it is kept; inputs that modules share are kept once."""
    moved: dict[str, Any] = {}
    for name in ("query", "key", "value"):
        tensor: Tensor = getattr(call, name)
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in known:
            known[place] = tensor.detach().to(STORED)
        moved[name] = known[place]
    return replace(call, **moved)


def as_plain(data: Mapping[str, DistillationData]) -> dict[str, Any]:
    """The data as dictionaries of tensors, such as files hold."""

    def fields(calls: Sequence[RecordedCall]) -> list[dict[str, Any]]:
        return [{name: getattr(call, name) for name in call.__dataclass_fields__} for call in calls]

    return {
        place: {
            "calls": fields(some.calls),
            "held_out": fields(some.held_out),
            "metric": some.metric,
        }
        for place, some in data.items()
    }


def from_plain(state: Mapping[str, Any]) -> dict[str, DistillationData]:
    """What `as_plain` has made plain."""
    return {
        place: DistillationData(
            calls=[RecordedCall(**fields) for fields in some["calls"]],
            held_out=[RecordedCall(**fields) for fields in some["held_out"]],
            metric=some["metric"],
        )
        for place, some in state.items()
    }
