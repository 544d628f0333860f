"""What the loss of a model feels of its attention: gradients at the outputs of the modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_attn.fairseq_tools.trained import TrainedModel

PADDING = 1  # of every fairseq dictionary


@dataclass(frozen=True)
class Felt:
    """Outputs of attention on one batch, and gradients of the summed loss (in nats) at them.

    Args:
        outputs: Outputs (B, T, embed_dim) of each module, by place.
        of_targets: Gradients of the loss of the targets, by place; empty if not asked for.
        of_draws: The same for labels drawn from the model's own predictions, once a draw. Those of
            different targets of a sequence do not mix: the mean of their products vanishes.
    """

    outputs: dict[str, Tensor]
    of_targets: dict[str, Tensor]
    of_draws: list[dict[str, Tensor]]


def feel(
    trained: TrainedModel,
    sample: Mapping[str, Any],
    generator: torch.Generator,
    *,
    draws: int = 1,
    targets: bool = False,
) -> Felt:
    """Run a model on a batch, and take gradients.

    Args:
        trained: The model.
        sample: Batch of its task, on the model's device.
        generator: Source of the drawn labels, on the CPU.
        draws: Number of times that labels are drawn.
        targets: Whether the gradients of the targets' loss are wanted.
    """
    model: Any = trained.model
    with _outputs(trained) as outputs:
        output = model(**sample["net_input"])
    scores = model.get_normalized_probs(output, log_probs=True)  # (B, T, types)
    seen = sample["target"] != PADDING
    scores = scores[seen]
    chances = scores.detach().exp().cpu() if draws else scores.detach()
    labels = [sample["target"][seen][:, None]] if targets else []
    labels += [
        torch.multinomial(chances, 1, generator=generator).to(scores.device) for _ in range(draws)
    ]
    found = []
    for number, some in enumerate(labels):
        is_last = number == len(labels) - 1
        found.append(_gradients(-scores.gather(-1, some).sum(), outputs, retain=not is_last))
    of_draws = found[1:] if targets else found
    kept = {place: output.detach() for place, output in outputs.items()}
    return Felt(kept, found[0] if targets else {}, of_draws)


def _gradients(loss: Tensor, outputs: Mapping[str, Tensor], *, retain: bool) -> dict[str, Tensor]:
    """Gradients of a loss at outputs, by place; zeros where it does not feel them."""
    at = list(outputs.values())
    found = torch.autograd.grad(loss, at, retain_graph=retain, allow_unused=True)
    return {
        place: torch.zeros_like(output) if gradient is None else gradient
        for (place, output), gradient in zip(outputs.items(), found, strict=True)
    }


@contextmanager
def _outputs(trained: TrainedModel) -> Iterator[dict[str, Tensor]]:
    """The outputs (B, T, embed_dim) of modules while a model runs."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for place, module in trained.attention().items():

        def keep(_: Any, __: Any, output: Tensor, place: str = place) -> None:
            outputs[place] = output

        handles.append(module.out_proj.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
