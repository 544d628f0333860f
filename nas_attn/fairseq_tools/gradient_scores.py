"""Scores of many conversions from gradients of one pass: what each would do to the loss.

A converted module's outputs differ from the trained one's by e. The loss then changes by g e and
half of e H e, with g its gradient at those outputs and H its curvature there. H is taken as the
mean of products of gradients, labels drawn from the model's own predictions, a sequence's targets
together (the Fisher matrix; Martens 2020, arXiv 1412.1193). So one pass with gradients over the
validation set serves all conversions, each of which runs its own modules alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion import RecordedCall, recorded
from nas_attn.conversion.convert import convert_from
from nas_attn.conversion.distillation import DistillationData
from nas_attn.conversion.metric import run
from nas_attn.conversion.source import ConversionSource
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.convert import (
    BATCH_TOKENS,
    NOT_DISTILLED,
    Losses,
    changed_choices,
    distiller,
)
from nas_attn.fairseq_tools.felt import PADDING, Felt, feel
from nas_attn.fairseq_tools.kept_modules import KeptModules
from nas_attn.fairseq_tools.trained import TrainedModel, load_batches, spread
from nas_attn.plan import AttentionChoice, AttentionPlan

DRAWS = 2
"""Times that labels are drawn for the curvature."""
SEED = 1
MAX_BYTES = 256 * 2**20
"""What the converted modules of one pass may take; with more there are several passes."""

_Place = tuple[str, int]
_Module = tuple[_Place, AttentionChoice]


@dataclass(frozen=True)
class GradientScore:
    """What gradients say of a conversion.

    Args:
        change: Change of the loss in bits per token.
        error: Standard error of that over the sequences.
    """

    change: float
    error: float


def gradient_scores(
    trained: TrainedModel,
    plans: Sequence[AttentionPlan],
    calls: Mapping[str, Sequence[RecordedCall]],
    data: Path,
    *,
    distillation: Mapping[str, DistillationData] = NOT_DISTILLED,
    kept: KeptModules | None = None,
) -> list[GradientScore]:
    """Score conversions of a trained model without running any converted model.

    Args:
        trained: Trained model, on the device that is to be used; not changed.
        plans: Plans that it would be converted to.
        calls: Calls of its attention modules on training data, by place, for the conversions.
        data: Binarised data; the validation set is the judge.
        distillation: Data that converted modules are trained on alone, by place; empty for none.
        kept: Modules that were trained alone before, and where those of these plans are kept.

    Returns:
        A score for each plan.

    Raises:
        PlanError: A plan does not fit the model, or its scheme cannot inherit.
        UsageError: The data do not fit the model.
    """
    wanted = [list(changed_choices(trained, plan).items()) for plan in plans]
    converter = _Converter(trained, calls, distillation, kept)
    scores: dict[int, GradientScore] = {}
    for some in _passes(trained, wanted):
        modules = converter.convert({key for number in some for key in wanted[number]})
        scores |= _score({number: wanted[number] for number in some}, modules, trained, data)
    return [scores[number] for number in range(len(plans))]


@dataclass(frozen=True)
class _Converter:
    """Converts modules of a trained model."""

    trained: TrainedModel
    calls: Mapping[str, Sequence[RecordedCall]]
    distillation: Mapping[str, DistillationData]
    kept: KeptModules | None

    def convert(self, wanted: set[_Module]) -> dict[_Module, Attention]:
        """Converted modules; what one place needs is prepared once."""
        made: dict[_Module, Attention] = {}
        attention = self.trained.attention()
        for place in self.trained.modules:
            choices = [choice for at, choice in wanted if at == place]
            if not choices:
                continue
            name = f"{place[0]}.{place[1]}"
            source = ConversionSource(attention[name], self.calls.get(name, ()))
            for choice in choices:
                made[place, choice] = self._converted(name, source, choice)
        return made

    def _converted(
        self, place: str, source: ConversionSource, choice: AttentionChoice
    ) -> Attention:
        known = None if self.kept is None else self.kept.load(place, choice, source.trained)
        if known is not None:
            return known.module
        distil = distiller(self.distillation.get(place))
        try:
            conversion = convert_from(source, choice, distil=distil, judge=distil is not None)
        except PlanError as error:
            raise PlanError(f"{place}: {error}") from None
        if self.kept is not None:
            self.kept.save(place, choice, conversion)
        return conversion.module


def _passes(trained: TrainedModel, wanted: Sequence[Sequence[_Module]]) -> Iterator[list[int]]:
    """Numbers of plans whose modules there is room for at a time."""
    sizes = {
        place: sum(p.numel() * p.element_size() for p in module.attention.parameters())
        for place, module in trained.modules.items()
    }
    some: list[int] = []
    room: set[_Module] = set()
    for number, keys in enumerate(wanted):
        more = room.union(keys)
        # Converted modules are hardly larger than trained ones.
        if some and sum(sizes[place] for place, _ in more) > MAX_BYTES:
            yield some
            some, more = [], set(keys)
        some.append(number)
        room = more
    if some:
        yield some


def _score(
    wanted: Mapping[int, Sequence[_Module]],
    modules: Mapping[_Module, Attention],
    trained: TrainedModel,
    data: Path,
) -> dict[int, GradientScore]:
    """Scores of plans by one pass over the validation set."""
    from fairseq import utils

    device = next(trained.model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    changes: dict[int, list[float]] = {number: [] for number in wanted}
    tokens: list[int] = []
    batches = load_batches(trained, data, "valid", BATCH_TOKENS)
    for batch in spread(batches, math.inf):
        sample = utils.apply_to_sample(lambda tensor: tensor.to(device), batch)
        with recorded(trained.attention()) as calls:
            felt = feel(trained, sample, generator, draws=DRAWS, targets=True)
        told = {key: _told(key[0], module, calls, felt) for key, module in modules.items()}
        none = torch.zeros(1 + DRAWS, len(sample["target"]), dtype=torch.float64, device=device)
        for number, keys in wanted.items():
            total = torch.stack([none, *(told[key] for key in keys)]).sum(0)  # (1 + draws, B)
            change = (total[0] + total[1:].square().mean(0) / 2) / math.log(2.0)
            changes[number] += change.tolist()
        tokens += (sample["target"] != PADDING).sum(1).tolist()
    unchanged = Losses([0.0] * len(tokens), tokens)
    return {
        number: GradientScore(*Losses(some, tokens).change_from(unchanged))
        for number, some in changes.items()
    }


@torch.no_grad()
def _told(
    place: _Place, module: Attention, calls: Mapping[str, Sequence[RecordedCall]], felt: Felt
) -> Tensor:
    """Products (1 + draws, B), in double precision, of gradients with what a module changes."""
    name = f"{place[0]}.{place[1]}"
    (call,) = calls[name]
    change = run(module, call) - felt.outputs[name]
    change = change.masked_fill(~call.valid_queries[..., None], 0.0)
    gradients = (felt.of_targets, *felt.of_draws)
    return torch.stack([(g[name] * change).double().sum((1, 2)) for g in gradients])
