"""Conversion of fairseq checkpoints: a trained model becomes one with another attention plan."""

from __future__ import annotations

import argparse
import copy
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.conversion import Call, Errors, convert_attention, recorded, warn_without_data
from nas_attn.errors import NasAttnError, PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.training.checkpoints import read_checkpoint, save_checkpoint
from nas_attn.training.data import point_at
from nas_attn.training.model import blank_dictionary, build_model

logger = logging.getLogger(__name__)

STOCK = re.compile(r"(.*layers\.\d+\.(?:self_attn|encoder_attn))\.((?:q|k|v|out)_proj\..*)")
"""Weights of fairseq's own attention."""
PLACE = re.compile(r".*?(encoder|decoder)\.(?:\w+\.)*layers\.(\d+)\.(self_attn|encoder_attn)")
"""Where a module is in a model."""

EMBEDDINGS = ("encoder", "encoder.sentence_encoder", "decoder")
"""Where models keep the embeddings of their dictionaries, the source's first."""

CALIBRATION_TOKENS = 8192
"""Of the training side, of source and target each about so many."""
BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Module:
    """What became of one attention module.

    Args:
        place: site and layer, such as decoder_self.2.
        choice: that it was converted to.
        errors: on the calibration batch; None without one.
    """

    place: str
    choice: AttentionChoice
    errors: Errors | None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion made of a checkpoint.

    Args:
        plan: of the new model.
        modules: those that changed.
        parameters: of the model before and after.
        losses: validation loss a token before and after, in bits; None without data.
    """

    plan: AttentionPlan
    modules: tuple[Module, ...]
    parameters: tuple[int, int]
    losses: tuple[float, float] | None = None


@dataclass(frozen=True)
class Losses:
    """Cross-entropy of the validation side's targets, sequence by sequence.

    Args:
        sums: in bits.
        tokens: targets of each sequence.
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


@dataclass
class TrainedModel:
    """A model with its attention in our modules, whatever it was trained with.

    Args:
        state: the checkpoint, its model's arguments naming an architecture of the plugin.
        model: with the checkpoint's weights, in evaluation mode.
        plan: of its attention.
        modules: the attention, by (site, layer).
    """

    state: dict[str, Any]
    model: nn.Module
    plan: AttentionPlan
    modules: dict[tuple[str, int], Any] = field(default_factory=dict)

    @property
    def arguments(self) -> Any:
        return self.state["cfg"]["model"]

    def layers(self) -> dict[str, int]:
        """Layers of each site."""
        sites: dict[str, int] = {}
        for site, layer in self.modules:
            sites[site] = max(sites.get(site, 0), layer + 1)
        return sites

    def attention(self) -> dict[str, Attention]:
        """The attention modules by their places, such as decoder_self.2."""
        return {f"{site}.{layer}": m.attention for (site, layer), m in self.modules.items()}


def load_trained(path: Path) -> TrainedModel:
    """Load a checkpoint of fairseq's transformer, transformer_lm or roberta, or of the plugin's.

    Raises:
        NasAttnError: it is none, or it does not hold what its arguments say.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY

    state = read_checkpoint(path)
    arguments = state["cfg"]["model"]
    if isinstance(arguments, dict):  # of models that have a dataclass of arguments
        arguments = argparse.Namespace(**arguments)
    if getattr(arguments, "attention_plan", None) is None:
        stock = getattr(arguments, "arch", None) or getattr(arguments, "_name", None)
        arch = f"multi_head_{stock}"
        if arch not in ARCH_MODEL_REGISTRY:
            raise NasAttnError(
                f"{path} is of the architecture {stock}, but only fairseq's transformer, "
                "transformer_lm and roberta can be converted, in all their sizes"
            )
        arguments.arch = arguments._name = arch
        sites = ARCH_MODEL_REGISTRY[arch].sites
        if getattr(arguments, "no_cross_attention", False):
            sites = tuple(site for site in sites if site != "encoder_decoder")
        plan = AttentionPlan.uniform(AttentionChoice.of("multi_head"), sites)
        arguments.attention_plan = plan.dumps()
        state["cfg"]["model"] = arguments
        state["model"] = {STOCK.sub(r"\1.attention.\2", k): v for k, v in state["model"].items()}
    model = _build(arguments, state["model"], path)
    plan = AttentionPlan.parse(arguments.attention_plan)
    return TrainedModel(state, model, plan, _modules_of(model))


def convert_checkpoint(
    path: Path,
    plan: AttentionPlan,
    out: Path,
    *,
    data: Path | None = None,
    force: bool = False,
    refit: bool = True,
    means: bool = False,
) -> Converted:
    """Write a checkpoint whose attention follows another plan and computes nearly the same.

    The optimiser's state is left out. The plan is stored in the checkpoint, so fairseq's commands
    load it as any other.

    Args:
        path: the trained checkpoint.
        plan: sites that it leaves out stay as they are.
        out: where the converted one goes.
        data: binarised data; the training side calibrates, the validation side is the judge.
        force: also convert to schemes that cannot inherit.
        refit: with data, solve output projections anew.
        means: share keys and values as means of heads, to compare with.

    Raises:
        NasAttnError: the checkpoint or the data are unfit, or there is no room; nothing is written.
        PlanError: the plan does not fit the model.
    """
    trained = load_trained(path)
    before = validation_loss(trained, data) if data is not None else None
    calls = calibration_calls(trained, data) if data is not None else {}
    converted = convert_trained(trained, plan, calls, force=force, refit=refit, means=means)
    after = validation_loss(trained, data) if data is not None else None
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
    calls: Mapping[str, Sequence[Call]],
    *,
    force: bool = False,
    refit: bool = True,
    means: bool = False,
) -> Converted:
    """Convert a model in place, its checkpoint with it (see `convert_checkpoint`).

    Args:
        trained: changed.
        plan: sites that it leaves out stay as they are.
        calls: of its attention modules, by place; empty for conversions by weights alone.
        force: also convert to schemes that cannot inherit.
        refit: with calls, solve output projections anew.
        means: share keys and values as means of heads, to compare with.

    Raises:
        PlanError: the plan does not fit the model.
    """
    choices = _choices(trained, plan)
    if not calls:
        warn_without_data(
            (choice, trained.modules[place].attention.embed_dim)
            for place, choice in choices.items()
        )
    before = sum(p.numel() for p in trained.model.parameters())
    modules = []
    for number, ((site, layer), choice) in enumerate(choices.items(), start=1):
        place = f"{site}.{layer}"
        adapter = trained.modules[site, layer]
        try:
            conversion = convert_attention(
                adapter.attention,
                choice,
                calls.get(place, ()),
                refit=refit,
                force=force,
                means=means,
            )
        except PlanError as error:
            raise PlanError(f"{place}: {error}") from None
        adapter.attention = conversion.module
        modules.append(Module(place=place, choice=choice, errors=conversion.errors))
        logger.info("converted %d of %d: %s to %s", number, len(choices), place, choice)
    trained.plan = plan.over(trained.plan)
    trained.arguments.attention_plan = trained.plan.dumps()
    trained.state["model"] = trained.model.state_dict()
    trained.state["last_optimizer_state"] = None
    after = sum(p.numel() for p in trained.model.parameters())
    # It must be what fairseq will build and load.
    _build(trained.arguments, trained.state["model"], None)
    return Converted(plan=trained.plan, modules=tuple(modules), parameters=(before, after))


@torch.no_grad()
def calibration_calls(trained: TrainedModel, data: Path) -> dict[str, list[Call]]:
    """What the attention modules are called with on some of the training side.

    Raises:
        NasAttnError: the data do not fit the model.
    """
    with recorded(trained.attention()) as calls:
        for sample in _samples(trained, data, "train", CALIBRATION_TOKENS):
            trained.model(**sample["net_input"])
    return calls


def _choices(trained: TrainedModel, plan: AttentionPlan) -> dict[tuple[str, int], AttentionChoice]:
    """The modules that a plan changes, and to what.

    Raises:
        PlanError: the plan does not fit the model.
    """
    layers = trained.layers()
    foreign = [site for site, _ in plan if site not in layers]
    if foreign:
        raise PlanError(f"the plan names {', '.join(foreign)}, which this model lacks")
    changed = {}
    for site, _ in plan:
        now = trained.plan.layers(site, layers[site])
        for layer, choice in enumerate(plan.layers(site, layers[site])):
            if choice != now[layer]:
                changed[site, layer] = choice
    return changed


def _build(arguments: Any, weights: Mapping[str, Tensor], path: Path | None) -> nn.Module:
    """The model of some arguments, with weights loaded.

    Raises:
        NasAttnError: they do not fit.
    """
    found = (f"{place}.embed_tokens.weight" for place in EMBEDDINGS)
    dictionaries = [blank_dictionary(len(weights[name])) for name in found if name in weights]
    if not dictionaries:
        raise NasAttnError(f"{path} holds no embeddings of a Transformer")
    try:
        model = build_model(arguments, dictionaries)
        model.load_state_dict(dict(weights), strict=True)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise NasAttnError(f"{path} does not hold the weights of its model: {error}") from None
    return model.eval()


def _modules_of(model: nn.Module) -> dict[tuple[str, int], Any]:
    modules = {}
    for name, module in model.named_modules():
        match = PLACE.fullmatch(name)
        if match:
            site = "encoder_decoder" if match[3] == "encoder_attn" else f"{match[1]}_self"
            modules[site, int(match[2])] = module
    return modules


def _samples(
    trained: TrainedModel, data: Path, subset: str, tokens: float
) -> Iterator[dict[str, Any]]:
    """Batches of a side of a data set, short and long sentences, up to about so many tokens."""
    from fairseq import tasks
    from omegaconf import OmegaConf

    config = trained.state["cfg"]["task"]
    config = OmegaConf.create(config) if isinstance(config, dict) else copy.deepcopy(config)
    point_at(config, data)
    try:
        task = tasks.setup_task(config)
        task.load_dataset(subset)
    except Exception as error:  # fairseq raises many kinds
        raise NasAttnError(f"{data} is no data set for this model: {error}") from None
    size = len(task.source_dictionary)
    embeddings = next(m for m in trained.model.modules() if isinstance(m, nn.Embedding))
    if size != embeddings.num_embeddings:
        raise NasAttnError(
            f"the model has {embeddings.num_embeddings} types, but the dictionary of {data} {size}"
        )
    dataset = task.dataset(subset)
    batches = task.get_batch_iterator(dataset, max_tokens=BATCH_TOKENS, seed=1).frozen_batches
    wanted = len(batches)
    if tokens < math.inf:
        wanted = min(wanted, math.ceil(tokens / BATCH_TOKENS))
    for index in range(wanted):
        lines = batches[index * len(batches) // wanted]
        sample = dataset.collater([dataset[int(line)] for line in lines])
        yield sample


def validation_loss(trained: TrainedModel, data: Path) -> float:
    """Validation loss a token, in bits: cross-entropy of the targets, without smoothing."""
    return validation_losses(trained, data).mean


@torch.no_grad()
def validation_losses(trained: TrainedModel, data: Path) -> Losses:
    """Validation loss of each sequence, in the same order for every model; on its device."""
    from fairseq import utils

    model: Any = trained.model
    device = next(model.parameters()).device
    sums: list[float] = []
    tokens: list[int] = []
    padding = 1  # of every fairseq dictionary
    for batch in _samples(trained, data, "valid", math.inf):
        sample = utils.apply_to_sample(lambda tensor: tensor.to(device), batch)
        output = model(**sample["net_input"])
        scores = model.get_normalized_probs(output, log_probs=True).float()
        target = sample["target"]
        seen = target != padding
        picked = scores.gather(-1, target[..., None])[..., 0]
        in_bits = picked.double().masked_fill(~seen, 0.0).sum(1) / -math.log(2.0)
        sums += in_bits.tolist()
        tokens += seen.sum(1).tolist()
    return Losses(sums, tokens)
