"""Conversion of fairseq checkpoints: a trained model becomes one with another attention plan."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion import (
    Conversion,
    Errors,
    RecordedCall,
    convert_attention,
    recorded,
    settled_choice,
    warn_without_data,
)
from nas_attn.conversion.convert import Distil
from nas_attn.conversion.distillation import DistillationData, Distilled
from nas_attn.conversion.distillation import distil as distil_module
from nas_attn.conversion.pooling import Pooling
from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.checkpoints import check_out, save_checkpoint, without_training
from nas_attn.fairseq_tools.distillation import distillation_data
from nas_attn.fairseq_tools.kept_modules import KeptModules
from nas_attn.fairseq_tools.kept_outputs import KeptOutputs
from nas_attn.fairseq_tools.trained import (
    TrainedModel,
    build_trained,
    load_batches,
    load_trained,
    spread,
)
from nas_attn.plan import AttentionChoice, AttentionPlan

logger = logging.getLogger(__name__)

CALIBRATION_TOKENS = 8192
"""Of the training set, of source and target each about so many."""
BATCH_TOKENS = 2048
NOT_DISTILLED: Mapping[str, DistillationData] = {}


@dataclass(frozen=True, kw_only=True)
class Module:
    """What became of one attention module.

    Args:
        place: Site and layer, such as decoder_self.2.
        choice: Choice that it was converted to; what a vote on the data left, if it had one.
        errors: Errors on the calibration batch; None without one.
        distilled: What training it alone did; None if it was not, or is exact.
    """

    place: str
    choice: AttentionChoice
    errors: Errors | None
    distilled: Distilled | None = None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion made of a checkpoint.

    Args:
        plan: Plan of the new model.
        modules: Modules that changed.
        parameters: Parameters of the model before and after.
        losses: Validation loss a token before and after, in bits; None without data.
    """

    plan: AttentionPlan
    modules: tuple[Module, ...]
    parameters: tuple[int, int]
    losses: tuple[float, float] | None = None

    @property
    def distillation(self) -> tuple[int, float]:
        """How many modules were trained alone, and the seconds that it took."""
        done = [module.distilled for module in self.modules if module.distilled is not None]
        return len(done), math.fsum(distilled.seconds for distilled in done)


@dataclass(frozen=True)
class Losses:
    """Cross-entropy of the validation set's targets, sequence by sequence.

    Args:
        sums: Sums of the loss, in bits.
        tokens: Targets of each sequence.
    """

    sums: Sequence[float]
    tokens: Sequence[int]

    @property
    def mean(self) -> float:
        """A token, in bits."""
        return math.fsum(self.sums) / max(1, sum(self.tokens))

    def change_from(self, other: Losses) -> tuple[float, float]:
        """By how much the mean is above another model's, and the standard error of that.

        Sequences are pairs, so what both models find hard does not count as noise.
        """
        changes = [a - b for a, b in zip(self.sums, other.sums, strict=True)]
        tokens, count = max(1, sum(self.tokens)), len(changes)
        change = math.fsum(changes) / tokens
        if count < 2:
            return change, math.nan
        spread = math.fsum(
            (of_sequence - change * size) ** 2
            for of_sequence, size in zip(changes, self.tokens, strict=True)
        )
        return change, math.sqrt(spread * count / (count - 1)) / tokens


def convert_checkpoint(
    path: Path,
    plan: AttentionPlan,
    out: Path,
    *,
    data: Path | None = None,
    force: bool = False,
    refit: bool = True,
    pooling: Pooling | None = None,
    distil: bool = False,
) -> Converted:
    """Write a checkpoint whose attention follows another plan and computes nearly the same.

    Where the plan has heads voted on (`grouped_head` with `keep`), the vote is held on what is
    recorded of the training set, and the new plan says which heads it left; without data all
    stay, for training to vote on.

    The optimiser's state is left out. The plan is stored in the checkpoint, so fairseq's commands
    load it as any other.

    Args:
        path: The trained checkpoint.
        plan: Sites that it leaves out stay as they are.
        out: Path of the converted one.
        data: Binarised data; the training set calibrates, the validation set is the judge.
        force: Whether schemes that cannot inherit are converted to as well.
        refit: Whether, with data, output projections are solved anew.
        pooling: Kind of means of heads that keys and values are shared as, to compare with.
        distil: Whether, with data, converted modules are trained alone on what they are called
            with.

    Raises:
        NasAttnError: the checkpoint or the data are unfit, or there is no room; nothing is written.
        PlanError: the plan does not fit the model.
    """
    check_out(out, path)
    trained = load_trained(path)
    before = validation_loss(trained, data) if data is not None else None
    calls = calibration_calls(trained, data) if data is not None else {}
    lessons = distillation_data(trained, data) if distil and data is not None else {}
    converted = convert_trained(
        trained, plan, calls, force=force, refit=refit, pooling=pooling, distillation=lessons
    )
    after = validation_loss(trained, data) if data is not None else None
    without_training(path, trained.state)
    save_checkpoint(trained.state, out)
    losses = None if before is None or after is None else (before, after)
    return Converted(
        plan=trained.plan,
        modules=converted.modules,
        parameters=converted.parameters,
        losses=losses,
    )


def convert_trained(
    trained: TrainedModel,
    plan: AttentionPlan,
    calls: Mapping[str, Sequence[RecordedCall]],
    *,
    force: bool = False,
    refit: bool = True,
    pooling: Pooling | None = None,
    distillation: Mapping[str, DistillationData] = NOT_DISTILLED,
    kept: KeptModules | None = None,
) -> Converted:
    """Convert a model in place, its checkpoint with it (see `convert_checkpoint`).

    Args:
        trained: Trained model, which is changed.
        plan: Sites that it leaves out stay as they are.
        calls: Calls of its attention modules, by place; empty for conversions by weights alone.
        force: Whether schemes that cannot inherit are converted to as well.
        refit: Whether, with calls, output projections are solved anew.
        pooling: Kind of means of heads that keys and values are shared as, to compare with.
        distillation: Data that converted modules are trained on alone, by place; empty for none.
        kept: Modules that were trained alone before, and where those of this plan are kept.

    Raises:
        PlanError: the plan does not fit the model.
    """
    choices = changed_choices(trained, plan)
    if not calls:
        warn_without_data(
            (choice, trained.modules[place].attention.embed_dim)
            for place, choice in choices.items()
        )
    before = sum(p.numel() for p in trained.model.parameters())
    lots = {place: lot for lot, place in enumerate(trained.modules)}
    modules = []
    for number, ((site, layer), choice) in enumerate(choices.items(), start=1):
        place = f"{site}.{layer}"
        adapter = trained.modules[site, layer]
        choices[site, layer] = choice = _settled(
            adapter.attention, place, choice, calls, lots[site, layer]
        )
        conversion = None if kept is None else kept.load(place, choice, adapter.attention)
        if conversion is None:
            some = distillation.get(place)
            how: _How = {"refit": refit, "force": force, "pooling": pooling}
            conversion = _conversion(adapter.attention, place, choice, calls, some, how)
            if kept is not None:
                kept.save(place, choice, conversion)
        adapter.attention = conversion.module
        module = Module(
            place=place, choice=choice, errors=conversion.errors, distilled=conversion.distilled
        )
        modules.append(module)
        logger.info(
            "converted %d of %d: %s to %s%s",
            *(number, len(choices), place, choice, _distilled_text(conversion.distilled)),
        )
    trained.plan = _with_choices(trained, choices)
    trained.arguments.attention_plan = trained.plan.dumps()
    trained.state["model"] = trained.model.state_dict()
    after = sum(p.numel() for p in trained.model.parameters())
    # It must be what fairseq will build and load.
    build_trained(trained.arguments, trained.state["model"], Path("the converted model"))
    return Converted(plan=trained.plan, modules=tuple(modules), parameters=(before, after))


def _settled(
    attention: Attention,
    place: str,
    choice: AttentionChoice,
    calls: Mapping[str, Sequence[RecordedCall]],
    lot: int,
) -> AttentionChoice:
    """A choice with what its vote decides, if it has one.

    Raises:
        PlanError: the choice does not fit; the message names the place.
    """
    try:
        return settled_choice(attention, choice, calls.get(place, ()), seed=lot)
    except PlanError as error:
        raise PlanError(f"{place}: {error}") from None


class _How(TypedDict):
    """Options of `convert_attention` that are the same for all modules."""

    refit: bool
    force: bool
    pooling: Pooling | None


def _conversion(
    attention: Attention,
    place: str,
    choice: AttentionChoice,
    calls: Mapping[str, Sequence[RecordedCall]],
    data: DistillationData | None,
    how: _How,
) -> Conversion:
    """Convert one module; with data it is trained alone, on a GPU if there is one.

    Raises:
        PlanError: the choice does not fit; the message names the place.
    """
    try:
        return convert_attention(
            attention, choice, calls.get(place, ()), distil=distiller(data), **how
        )
    except PlanError as error:
        raise PlanError(f"{place}: {error}") from None


def distiller(data: DistillationData | None) -> Distil | None:
    """What trains a converted module alone, on a GPU if there is one; None without data."""
    if data is None:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(distil_module, data=data, device=device)


def _distilled_text(distilled: Distilled | None) -> str:
    if distilled is None:
        return ""
    return (
        f"; distilled, error {distilled.before:.3f} -> {distilled.after:.3f} "
        f"({distilled.steps} steps, {distilled.seconds:.1f} s)"
    )


@torch.no_grad()
def calibration_calls(trained: TrainedModel, data: Path) -> dict[str, list[RecordedCall]]:
    """What the attention modules are called with on some of the training set.

    Raises:
        NasAttnError: the data do not fit the model.
    """
    batches = load_batches(trained, data, "train", BATCH_TOKENS)
    with recorded(trained.attention()) as calls:
        for sample in spread(batches, CALIBRATION_TOKENS // BATCH_TOKENS):
            trained.model(**sample["net_input"])
    return calls


def _with_choices(
    trained: TrainedModel, choices: Mapping[tuple[str, int], AttentionChoice]
) -> AttentionPlan:
    """A model's plan with other choices of some modules."""
    return AttentionPlan.of(
        {
            site: [
                choices.get((site, layer), now)
                for layer, now in enumerate(trained.plan.layers(site, count))
            ]
            for site, count in trained.layers().items()
        }
    )


def changed_choices(
    trained: TrainedModel, plan: AttentionPlan
) -> dict[tuple[str, int], AttentionChoice]:
    """The modules that a plan changes, and to what.

    Raises:
        PlanError: the plan does not fit the model.
    """
    layers = trained.layers()
    foreign = [site for site, _ in plan if site not in layers]
    if foreign:
        raise PlanError(f"the plan names {', '.join(foreign)}, which this model lacks")
    plan.over(trained.plan).check_source()
    changed = {}
    for site, _ in plan:
        now = trained.plan.layers(site, layers[site])
        for layer, choice in enumerate(plan.layers(site, layers[site])):
            if choice != now[layer]:
                changed[site, layer] = choice
    return changed


def validation_loss(trained: TrainedModel, data: Path) -> float:
    """Validation loss a token, in bits: cross-entropy of the targets, without smoothing."""
    return validation_losses(trained, data).mean


@torch.no_grad()
def validation_losses(
    trained: TrainedModel,
    data: Path,
    kept: KeptOutputs | None = None,
    on_scores: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Losses:
    """Validation loss of each sequence, in the same order for every model; on its device.

    Args:
        trained: The model.
        data: Binarised data.
        kept: Outputs of layers that are as they were, which are not computed again.
        on_scores: Function that is called for each batch with its number, the logarithms of
            probabilities (B, T, types), and which targets (B, T) are seen.
    """
    from fairseq import utils

    model: Any = trained.model
    device = next(model.parameters()).device
    sums: list[float] = []
    tokens: list[int] = []
    padding = 1  # of every fairseq dictionary
    batches = spread(load_batches(trained, data, "valid", BATCH_TOKENS), math.inf)
    with nullcontext() if kept is None else kept.used(model):
        for number, batch in enumerate(batches):
            if kept is not None:
                kept.batch = number
            sample = utils.apply_to_sample(lambda tensor: tensor.to(device), batch)
            output = model(**sample["net_input"])
            scores = model.get_normalized_probs(output, log_probs=True).float()
            target = sample["target"]
            seen = target != padding
            if on_scores is not None:
                on_scores(number, scores, seen)
            picked = scores.gather(-1, target[..., None])[..., 0]
            in_bits = picked.double().masked_fill(~seen, 0.0).sum(1) / -math.log(2.0)
            sums += in_bits.tolist()
            tokens += seen.sum(1).tolist()
    return Losses(sums, tokens)
