"""Outputs of a trained model's layers on the validation set, so that only what a conversion
changes, and what comes after it, is computed again.

A change in a decoder's layer leaves the encoder's output as it was, and the outputs of the layers
below it. They are taken from the record, which changes no bit of the loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nas_attn.fairseq_tools.trained import TrainedModel

MAX_BYTES = 256 * 2**20
"""What the outputs may take in all; where they would take more, lower layers are computed again."""

LAYER = re.compile(r"(encoder|decoder)\.(?:\w+\.)*layers\.(\d+)")
"""Where a layer is in a model."""

Outputs = dict[str, list[Tensor]]
"""Outputs (T, B, embed_dim) of each batch, by stack and layer, such as decoder.0."""


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """The full names of the layers of a model's encoder and decoder, as far as it has them."""
    stacks: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        match = LAYER.fullmatch(name)
        if match and int(match[2]) == len(stacks.setdefault(match[1], [])):
            stacks[match[1]].append(name)
    return stacks


@contextmanager
def recording(trained: TrainedModel, outputs: Outputs) -> Iterator[None]:
    """Record the outputs of layers while a model runs, as many as there is room for.

    What most changes can use is kept first: the encoder's output, then from the top down. The last
    layer of all is left out, for nothing comes after it.
    """
    stacks = layers_of(trained.model)
    last = "decoder" if "decoder" in stacks else "encoder"
    room = _Room(MAX_BYTES)
    handles = []
    for stack, names in stacks.items():
        for layer, name in enumerate(names):
            if stack == last and layer == len(names) - 1:
                continue
            place = f"{stack}.{layer}"
            outputs[place] = []
            # The encoder's output serves every change of the decoder.
            rank = (stack == last, -layer)
            room.wants[place] = rank

            def keep(_: Any, __: Any, output: Any, place: str = place) -> None:
                room.keep(outputs, place, output[0] if isinstance(output, tuple) else output)

            handles.append(trained.model.get_submodule(name).register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Room:
    """Room for outputs.

    Args:
        left: Bytes that are left.
        wants: Rank of each place: the lowest is kept longest.
    """

    left: int
    wants: dict[str, tuple[bool, int]] = field(default_factory=dict)

    def keep(self, outputs: Outputs, place: str, output: Tensor) -> None:
        """Keep an output, or give up the place that is wanted least."""
        if place not in outputs:
            return
        size = output.numel() * output.element_size()
        while size > self.left and place in outputs:
            least = max(outputs, key=self.wants.__getitem__)
            self.left += sum(t.numel() * t.element_size() for t in outputs.pop(least))
        if place in outputs:
            outputs[place].append(output.detach().cpu().clone())
            self.left -= size


class KeptOutputs:
    """What a converted model need not compute again.

    Args:
        outputs: Outputs of the trained model on the batches of the validation set.
        changed: Places of the modules that the conversion changed, such as decoder_self.1.
    """

    def __init__(self, outputs: Mapping[str, Sequence[Tensor]], changed: Iterable[str]) -> None:
        self.outputs = outputs
        self.batch = 0
        self._first: dict[str, int] = {}
        for place in changed:
            site, _, layer = place.rpartition(".")
            stack = "encoder" if site == "encoder_self" else "decoder"
            self._first[stack] = min(int(layer), self._first.get(stack, int(layer)))

    def until(self, stack: str, count: int) -> int:
        """So many of a stack's first layers are not computed."""
        first = self._first.get(stack, count)
        if stack == "decoder" and "encoder" in self._first:
            first = 0  # what its layers attend to has changed
        return max((n + 1 for n in range(first) if f"{stack}.{n}" in self.outputs), default=0)

    @contextmanager
    def used(self, model: nn.Module) -> Iterator[None]:
        """Have a model take them in place of its first layers; `batch` says which is next."""
        replaced: list[tuple[nn.ModuleList, int, nn.Module]] = []
        for stack, names in layers_of(model).items():
            until = self.until(stack, len(names))
            for layer, name in enumerate(names[:until]):
                of_layers: Any = model.get_submodule(name.rpartition(".")[0])
                replaced.append((of_layers, layer, of_layers[layer]))
                kept = self.outputs[f"{stack}.{layer}"] if layer == until - 1 else None
                of_layers[layer] = _Stub(self, kept, is_decoder=stack == "decoder")
        try:
            yield
        finally:
            for of_layers, layer, module in replaced:
                of_layers[layer] = module


class _Stub(nn.Module):
    """A layer that gives what was recorded, or what it is given where that is not looked at."""

    def __init__(
        self, kept: KeptOutputs, outputs: Sequence[Tensor] | None, *, is_decoder: bool
    ) -> None:
        super().__init__()
        self.kept = kept
        self.outputs = outputs
        self.is_decoder = is_decoder

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        if self.outputs is not None:
            x = self.outputs[self.kept.batch].to(x.device, x.dtype)
        return (x, None, None) if self.is_decoder else x
