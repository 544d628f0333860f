"""A checkpoint's model, whatever wrote it, with its attention in our modules; and its data."""

from __future__ import annotations

import argparse
import copy
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas_attn.attention import Attention
from nas_attn.errors import PlanError, UsageError
from nas_attn.fairseq_tools.checkpoints import read_checkpoint
from nas_attn.fairseq_tools.data import point_at
from nas_attn.fairseq_tools.models import blank_dictionary, build_model
from nas_attn.plan import AttentionChoice, AttentionPlan

logger = logging.getLogger(__name__)

IN_ATTENTION = re.compile(r"(.*layers\.\d+\.(?:self_attn|encoder_attn))\.(.*)")
"""A weight of attention: the module, and what is in it."""
PLACE = re.compile(r".*?(encoder|decoder)\.(?:\w+\.)*layers\.(\d+)\.(self_attn|encoder_attn)")
"""Where a module is in a model."""

NORMFORMER = re.compile(r".*\.layers\.\d+\.(?:attn_ln|c_attn|ffn_layernorm|w_resid)\b.*")
"""A weight that fairseq's --scale-attn and its kin add to a layer."""
EMBEDDINGS = ("encoder", "encoder.sentence_encoder", "decoder.sentence_encoder", "decoder")
"""Where models keep the embeddings of their dictionaries, the source's first."""
MAX_PLAN = 100_000
"""Letters of a plan in a checkpoint."""
NO_PLAN = (
    "{} holds no attention plan: it was not trained with the plugin. If it is of fairseq's own "
    "Transformer, make it one of the plugin's first: nas-attn convert CHECKPOINT --plan '{{}}' "
    "--out FILE"
)


@dataclass
class TrainedModel:
    """A model with its attention in our modules, whatever it was trained with.

    Args:
        state: The checkpoint, its model's arguments naming an architecture of the plugin.
        model: Model with the checkpoint's weights, in evaluation mode.
        plan: Plan of its attention.
        modules: The attention, by (site, layer).
        is_stock: Whether the checkpoint is of fairseq's own attention.
    """

    state: dict[str, Any]
    model: nn.Module
    plan: AttentionPlan
    modules: dict[tuple[str, int], Any] = field(default_factory=dict)
    is_stock: bool = False

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
        UsageError: it is none, or it does not hold what its arguments say.
    """
    return trained_from(read_checkpoint(path), path)


def trained_from(state: dict[str, Any], path: Path) -> TrainedModel:
    """The model of a checkpoint that was read.

    Args:
        state: State of the checkpoint, its arguments in `cfg`; changed in place.
        path: Path of the checkpoint, for messages.

    Raises:
        UsageError: It is of no model that is known, or does not hold what its arguments say.
    """
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    import fairseq_plugin  # noqa: F401  registers the architectures

    arguments = state["cfg"]["model"]
    is_legacy = isinstance(arguments, argparse.Namespace)
    if not is_legacy:  # of models that have a dataclass of arguments
        arguments = argparse.Namespace(**arguments)
    state["cfg"]["model"] = arguments
    name = getattr(arguments, "arch", None) or getattr(arguments, "_name", None)
    is_stock = getattr(arguments, "attention_plan", None) is None
    arch = f"multi_head_{name}" if is_stock else name
    if not isinstance(arch, str) or not hasattr(ARCH_MODEL_REGISTRY.get(arch), "sites"):
        raise UsageError(
            f"{path} is of the architecture {name}, but only fairseq's transformer, "
            "transformer_lm and roberta can be converted, in all their sizes"
        )
    arguments.arch = arguments._name = arch
    if is_stock:
        if is_legacy:  # older ones lack what was thought of later, as fairseq knows
            ARCH_CONFIG_REGISTRY[arch](arguments)
        sites = ARCH_MODEL_REGISTRY[arch].sites
        if getattr(arguments, "no_cross_attention", False):
            sites = tuple(site for site in sites if site != "encoder_decoder")
        plan = AttentionPlan.uniform(AttentionChoice.of("multi_head"), sites)
        arguments.attention_plan = plan.dumps()
        state["model"] = _renamed(state["model"])
    plan = plan_of(arguments, path)
    model = build_trained(arguments, state["model"], path)
    _check_finite(model, path)
    return TrainedModel(state, model, plan, modules_of(model), is_stock)


def plan_of(arguments: Any, path: Path) -> AttentionPlan:
    """The plan that a checkpoint of the plugin holds, as JSON text.

    Raises:
        UsageError: it holds none.
    """
    text = getattr(arguments, "attention_plan", None)
    if text is None:
        raise UsageError(NO_PLAN.format(path))
    if not isinstance(text, str) or not text.lstrip().startswith("{") or len(text) > MAX_PLAN:
        raise UsageError(f"the attention plan in {path} is no JSON text, or too long")
    try:
        return AttentionPlan.parse(text)
    except (PlanError, RecursionError) as error:
        raise UsageError(f"the attention plan in {path}: {error}") from None


def build_trained(
    arguments: Any, weights: Mapping[str, Tensor], path: Path, *, lacking: str | None = None
) -> nn.Module:
    """The model of some arguments, with weights loaded, in evaluation mode.

    Args:
        arguments: Arguments of one of the plugin's architectures.
        weights: The state dictionary.
        path: Path of the checkpoint, for messages.
        lacking: A pattern of names that the weights may lack.

    Raises:
        UsageError: they do not fit.
    """
    dictionaries = [blank_dictionary(size) for size in _vocabularies(weights, path)]
    if any(NORMFORMER.fullmatch(name) for name in weights):
        raise UsageError(
            f"{path} is of a NormFormer (--scale-attn, --scale-fc, --scale-heads or "
            "--scale-resids), which our layers do not build"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fairseq's modules, about themselves
            model = _built(arguments, dictionaries)
            given = dict(weights)
            for name, _ in model.named_parameters():
                if name in given and not given[name].is_floating_point():
                    # torch would round them, or drop their imaginary part.
                    raise ValueError(f"{name} is {given[name].dtype}, not of real numbers")
            if lacking is not None:
                own = model.state_dict()
                given = {k: v for k, v in own.items() if re.fullmatch(lacking, k)} | given
            model.load_state_dict(given, strict=True)
    except _NotOursError as error:
        raise UsageError(f"{path} is of a model that cannot be taken over: {error}") from None
    except Exception as error:  # fairseq and torch raise many kinds
        why = " ".join(str(error).split())
        raise UsageError(f"{path} does not hold the weights of its model: {why[:1000]}") from None
    return model.eval()


class _NotOursError(Exception):
    """Our attention refuses to be part of a model; the message is a `PlanError`'s."""


def _built(arguments: Any, dictionaries: Sequence[Any]) -> nn.Module:
    try:
        return build_model(arguments, dictionaries)
    except PlanError as error:
        raise _NotOursError(str(error)) from None


def modules_of(model: nn.Module) -> dict[tuple[str, int], Any]:
    """The attention modules of a model by (site, layer)."""
    modules = {}
    for name, module in model.named_modules():
        match = PLACE.fullmatch(name)
        if match:
            site = "encoder_decoder" if match[3] == "encoder_attn" else f"{match[1]}_self"
            modules[site, int(match[2])] = module
    return modules


@dataclass(frozen=True)
class Batches:
    """Batches of a side of a data set.

    Args:
        dataset: Dataset of fairseq.
        lines: Line numbers of each batch, short sentences first.
    """

    dataset: Any
    lines: list[Any]

    def __getitem__(self, index: int) -> dict[str, Any]:
        lines = self.lines[index]
        sample: dict[str, Any] = self.dataset.collater([self.dataset[int(x)] for x in lines])
        return sample


def task_config(trained: TrainedModel, data: Path) -> Any:
    """Settings of a model's task, on a data set."""
    from omegaconf import OmegaConf

    config = trained.state["cfg"]["task"]
    config = OmegaConf.create(config) if isinstance(config, dict) else copy.deepcopy(config)
    point_at(config, data)
    return config


def load_batches(trained: TrainedModel, data: Path, subset: str, max_tokens: int) -> Batches:
    """Batch a side of a data set as training does: what is too long is left out, and counted.

    Args:
        trained: The model that is to read it.
        data: Binarised data.
        subset: Name of the split, such as valid.
        max_tokens: Tokens of a batch at most. Language models whose blocks are longer get a block a
            batch.

    Raises:
        UsageError: the data do not fit the model, or nothing is short enough.
    """
    from fairseq import tasks, utils

    try:
        config = task_config(trained, data)
        task = tasks.setup_task(config)
        _check_dictionaries(trained.model, task, data)
        task.load_dataset(subset)
        dataset = task.dataset(subset)
        max_tokens = max(max_tokens, getattr(config, "tokens_per_sample", None) or 0)
        model: Any = trained.model
        limits = utils.resolve_max_positions(
            task.max_positions(), model.max_positions(), max_tokens
        )
        batches = task.get_batch_iterator(
            dataset,
            max_tokens=max_tokens,
            max_positions=limits,
            ignore_invalid_inputs=True,
            seed=1,
        ).frozen_batches
    except UsageError:
        raise
    except Exception as error:  # fairseq raises many kinds
        raise UsageError(f"{data} is no data set for this model: {error}") from None
    left_out = len(dataset) - sum(len(lines) for lines in batches)
    if left_out:
        logger.warning(
            "%d of %d sentences of the side %s of %s are left out, as training does: they are "
            "longer than the model or a batch of %d tokens takes",
            left_out,
            len(dataset),
            subset,
            data,
            max_tokens,
        )
    if not batches:
        raise UsageError(f"no sentence of the side {subset} of {data} is short enough to be used")
    return Batches(dataset, list(batches))


def spread(batches: Batches, count: float) -> Iterator[dict[str, Any]]:
    """Of batches sorted by length at most so many, short and long ones."""
    total = len(batches.lines)
    wanted = total if count == math.inf else min(total, int(count))
    for index in range(wanted):
        yield batches[index * total // wanted]


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of fairseq's own attention by the names of ours."""
    from fairseq_plugin.adapter import STOCK, our_weights

    renamed = {}
    for name, tensor in weights.items():
        match = IN_ATTENTION.fullmatch(name)
        if match is None or not STOCK.fullmatch(match[2]):
            renamed[name] = tensor
        else:
            for ours, rows in our_weights(match[2], tensor).items():
                renamed[f"{match[1]}.{ours}"] = rows
    return renamed


def _vocabularies(weights: Mapping[str, Tensor], path: Path) -> list[int]:
    """Types of the source's and the target's dictionary, or of the one that there is.

    Raises:
        UsageError: the weights hold no embeddings that could be known.
    """
    sizes = []
    for place in EMBEDDINGS:
        start = f"{place}.embed_tokens."
        whole = weights.get(f"{start}weight")
        bands = [
            tensor
            for name, tensor in weights.items()
            if re.fullmatch(re.escape(start) + r"embeddings\.\d+\.0\.weight", name)
        ]
        tables = bands if whole is None else [whole]
        if tables and all(tensor.dim() == 2 for tensor in tables):
            sizes.append(sum(len(tensor) for tensor in tables))
        elif any(name.startswith(f"{start}char_embeddings") for name in weights):
            raise UsageError(
                f"{path} is of a model that reads words letter by letter (character embeddings), "
                "which cannot be converted"
            )
    if not sizes:
        raise UsageError(f"{path} holds no embeddings of a Transformer")
    return sizes


def _check_finite(model: nn.Module, path: Path) -> None:
    for name, parameter in model.named_parameters():
        wrong = int((~parameter.isfinite()).sum())
        if wrong:
            raise UsageError(
                f"{path} is of no use: {wrong:,} of the {parameter.numel():,} weights {name} are "
                "infinite or not a number; take a checkpoint from before the training went wrong"
            )


def _check_dictionaries(model: Any, task: Any, data: Path) -> None:
    sides = [
        ("source", getattr(model, "encoder", None)),
        ("target", getattr(model, "decoder", None)),
    ]
    for side, part in sides:
        dictionary = getattr(task, f"{side}_dictionary", None)
        if part is None or dictionary is None:
            continue
        part = getattr(part, "sentence_encoder", part)
        table: Any = getattr(part, "embed_tokens", None)
        size = getattr(table, "num_embeddings", None)
        if hasattr(table, "cutoff"):  # of adaptive inputs
            size = table.cutoff[-1]
        if size is not None and size != len(dictionary):
            raise UsageError(
                f"the model has {size} types, but the {side} dictionary of {data} {len(dictionary)}"
            )
