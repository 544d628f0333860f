"""Sizes of fairseq models, exactly and before any training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from nas_attn.attention import Attention
from nas_attn.attention.counting import count_model, count_plan
from nas_attn.config_model import Scalar
from nas_attn.errors import ConfigIssue, DataError, PlanError
from nas_attn.fairseq_tools.arguments import BASELINE_SCHEME, parse_arguments
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.flags import dashed
from nas_attn.literals import did_you_mean
from nas_attn.measures import ModelSize
from nas_attn.plan import AttentionPlan, SiteShape


def site_shapes(args: argparse.Namespace) -> dict[str, SiteShape]:
    """The attention sites of the model that parsed fairseq arguments describe."""
    shapes = {
        f"{side}_self": SiteShape(
            num_layers=getattr(args, f"{side}_layers"),
            embed_dim=getattr(args, f"{side}_embed_dim"),
            num_heads=getattr(args, f"{side}_attention_heads"),
        )
        for side in ("encoder", "decoder")
        if hasattr(args, f"{side}_layers")
    }
    if len(shapes) == 2 and not getattr(args, "no_cross_attention", False):
        encoder, decoder = shapes["encoder_self"], shapes["decoder_self"]
        kdim = None if encoder.embed_dim == decoder.embed_dim else encoder.embed_dim
        shapes["encoder_decoder"] = replace(decoder, kdim=kdim)
    return shapes


def parse_architecture(arch: str, flags: Sequence[str]) -> argparse.Namespace:
    """Parse flags of fairseq-train for one of the plugin's architectures.

    Args:
        arch: Name of the architecture, such as collaborative_transformer_wmt_en_de, or fairseq's
            own name, such as transformer, which is that of multi-head attention.
        flags: Flags of fairseq-train; without a task they are those of the task that the
            architecture is made for.

    Raises:
        ValueError: there is no such architecture, or fairseq refuses a flag.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY

    import fairseq_plugin  # noqa: F401  registers the architectures

    sites_of = {
        name: model.sites for name, model in ARCH_MODEL_REGISTRY.items() if hasattr(model, "sites")
    }
    stock = f"{BASELINE_SCHEME}_{arch}"
    arch = stock if stock in sites_of else arch
    if arch not in sites_of:
        prefix = f"{BASELINE_SCHEME}_"
        known = [*(name.removeprefix(prefix) for name in sites_of), *sites_of]
        offer = did_you_mean(arch, known) or (
            "; there are fairseq's, such as transformer_wmt_en_de, and the plugin's, "
            "SCHEME_FAIRSEQ-ARCHITECTURE, such as collaborative_transformer_wmt_en_de"
        )
        raise ValueError(f"unknown architecture {arch}{offer}")
    sites = sites_of[arch]
    if not any(flag.startswith("--task") for flag in flags):
        tasks = {("decoder_self",): "language_modeling", ("encoder_self",): "masked_lm"}
        flags = ["--task", tasks.get(sites, "translation"), *flags]
    return parse_arguments(arch, flags)


def build_model(args: argparse.Namespace, dictionaries: Sequence[Any]) -> torch.nn.Module:
    """Build a fairseq model as fairseq-train does, with random weights.

    Args:
        args: Parsed fairseq arguments of one of the plugin's architectures.
        dictionaries: Dictionaries of the source and the target; one for language models.

    Raises:
        PlanError: the plan does not fit the model.
        ValueError: fairseq refuses the arguments.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY

    task = argparse.Namespace(source_dictionary=dictionaries[0], target_dictionary=dictionaries[-1])
    model: torch.nn.Module = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    return model


def build_on_meta(args: argparse.Namespace, dictionaries: Sequence[Any]) -> torch.nn.Module:
    """`build_model` without storage."""
    with torch.device("meta"), _NothingDrawn(), _no_positions_computed():
        return build_model(args, dictionaries)


# For tensors without storage torch imports its compiler to draw or compute values, which takes two
# seconds; so there is nothing drawn and nothing computed.


class _NothingDrawn(TorchFunctionMode):
    """Leaves out drawing weights on the meta device."""

    DRAWING = (
        init.normal_, init.uniform_, init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_,
    )  # fmt: skip

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in self.DRAWING:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return function(*args, **kwargs)


_BLANK: ContextVar[bool] = ContextVar("positions are left blank", default=False)


@contextmanager
def _no_positions_computed() -> Iterator[None]:
    """Leaves out fairseq's table of sines; what it refuses is still refused.

    Of this thread alone: others may build models that compute something meanwhile.
    """
    _let_positions_be_blank()
    token = _BLANK.set(True)
    try:
        yield
    finally:
        _BLANK.reset(token)


@cache
def _let_positions_be_blank() -> None:
    """Have fairseq's table of sines ask whether it is wanted; done twice it does no harm."""
    from fairseq.modules import SinusoidalPositionalEmbedding

    compute = SinusoidalPositionalEmbedding.get_embedding

    def blank_or_computed(count: int, width: int, padding_idx: int | None = None) -> Tensor:
        if not _BLANK.get():
            table: Tensor = compute(count, width, padding_idx)
            return table
        with torch.device("cpu"):
            compute((padding_idx or 0) + 1, width, padding_idx)
        return torch.empty(count, width)

    SinusoidalPositionalEmbedding.get_embedding = staticmethod(blank_or_computed)


def check_model(
    args: argparse.Namespace, dictionaries: Sequence[Any], arguments: Mapping[str, Scalar]
) -> Iterator[ConfigIssue]:
    """Why fairseq cannot build the model of a training section, if so.

    Args:
        args: The section's arguments as fairseq parsed them.
        dictionaries: Dictionaries of the source and the target, or one.
        arguments: The section's arguments.
    """
    try:
        build_on_meta(argparse.Namespace(**vars(args)), dictionaries)
    except Exception as error:
        said = str(error) or f"{type(error).__name__} as it is built"
        places = {name: f"{said} ".find(f"--{dashed(name)} ") for name in arguments}
        named = sorted((place, name) for name, place in places.items() if place >= 0)
        key = f"training.arguments.{named[0][1]}" if named else "training.arguments"
        yield ConfigIssue(key, f"fairseq cannot build this model: {said}")


def blank_dictionary(size: int) -> Any:
    """A fairseq dictionary of `size` types, special symbols included.

    Raises:
        PlanError: the size is smaller than the number of special symbols.
    """
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    if size < len(dictionary):
        raise PlanError(f"a vocabulary has at least {len(dictionary)} types, but {size} were asked")
    for index in range(size - len(dictionary)):
        dictionary.add_symbol(f"type{index}")
    return dictionary


def load_dictionaries(data: PreparedData, task: str) -> list[Any]:
    """The dictionaries of a data set as a task has them: source and target, or one.

    Raises:
        DataError: the folder lacks a dictionary, or fairseq cannot read it.
    """
    from fairseq.data import Dictionary

    names = [f"dict.{language}.txt" for language in data.languages] or ["dict.txt"]
    for name in names:
        if not (data.folder / name).is_file():
            raise DataError(f"data folder {data.folder} lacks {name}")
    dictionaries = []
    for name in names:
        try:
            dictionaries.append(Dictionary.load(str(data.folder / name)))
        except Exception as error:  # fairseq raises many kinds
            raise DataError(f"{data.folder / name} is no dictionary: {error}") from None
    if task == "masked_lm":
        dictionaries[0].add_symbol("<mask>")
    return dictionaries


@dataclass(frozen=True)
class Sizer:
    """Exact sizes of one model for any plan, by adding what the plan's modules hold.

    Args:
        shapes: The model's sites.
        rest: The model without attention.
    """

    shapes: dict[str, SiteShape]
    rest: ModelSize

    @classmethod
    def of(cls, args: argparse.Namespace, dictionaries: Sequence[Any]) -> Sizer:
        """Measure the model of parsed fairseq arguments (see `build_on_meta`)."""
        size = count_model(build_on_meta(args, dictionaries))
        total = size.total - size.attention
        rest = ModelSize(0, size.non_embedding - size.attention, total, effective=total)
        return cls(site_shapes(args), rest)

    def size(self, plan: AttentionPlan) -> ModelSize:
        """The model's size under a plan, before any pruning."""
        attention = count_plan(plan, self.shapes)
        return ModelSize(
            attention.parameters,
            self.rest.non_embedding + attention.parameters,
            self.rest.total + attention.parameters,
            self.rest.total + attention.effective,
        )


def count_architecture(
    arch: str, vocab: int, target_vocab: int | None, flags: Sequence[str]
) -> ModelSize:
    """Count a model by the name of its architecture.

    Args:
        arch: One of the plugin's architectures.
        vocab: Types of the (source) dictionary.
        target_vocab: Types of the target dictionary if it is another one.
        flags: Further flags of fairseq-train.

    Raises:
        ValueError: fairseq or a scheme refuses the flags.
    """
    args = parse_architecture(arch, flags)
    dictionaries = [blank_dictionary(vocab)]
    if target_vocab is not None:
        dictionaries.append(blank_dictionary(target_vocab))
    return count_model(build_on_meta(args, dictionaries))


def stock_attention(embed_dim: int, num_heads: int) -> torch.nn.Module:
    """fairseq's own self-attention."""
    from fairseq.modules import MultiheadAttention

    module: torch.nn.Module = MultiheadAttention(embed_dim, num_heads, self_attention=True)
    return module


def fairseq_attention(attention: Attention) -> torch.nn.Module:
    """A scheme behind the interface of fairseq's attention, as its decoder's layers call it."""
    from fairseq_plugin.adapter import FairseqAttention

    module: torch.nn.Module = FairseqAttention(attention, decoder_self_attention=True)
    return module
