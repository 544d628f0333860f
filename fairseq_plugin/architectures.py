"""Architectures: for every attention scheme, fairseq's Transformers in fairseq's own sizes.

`transformer_iwslt_de_en` becomes `<scheme>_transformer_iwslt_de_en`, and so for all sizes of
`transformer` and `transformer_lm`. The scheme's options are flags; `--attention-plan` sets scheme
and options for every site and layer and is stored in the checkpoint as JSON.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.distributed import fsdp_wrap
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModel,
)
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
    base_lm_architecture,
)
from fairseq.modules import transformer_layer
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import nn

from nas_attn.attention import SCHEMES, build_attention
from nas_attn.errors import PlanError
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan

from .adapter import FairseqAttention


class PlannedEncoderLayer(transformer_layer.TransformerEncoderLayerBase):
    """fairseq's encoder layer with the attention that a plan chooses."""

    def __init__(self, cfg: Any, self_choice: AttentionChoice, return_fc: bool = False) -> None:
        self.self_choice = self_choice
        super().__init__(cfg, return_fc)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> FairseqAttention:
        return _build(self.self_choice, embed_dim, cfg.encoder.attention_heads, cfg)


class PlannedDecoderLayer(transformer_layer.TransformerDecoderLayerBase):
    """fairseq's decoder layer with the attention that a plan chooses."""

    def __init__(
        self,
        cfg: Any,
        self_choice: AttentionChoice,
        encoder_choice: AttentionChoice | None,
    ) -> None:
        self.self_choice = self_choice
        self.encoder_choice = encoder_choice
        super().__init__(cfg, no_encoder_attn=encoder_choice is None)

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> FairseqAttention:
        if add_bias_kv or add_zero_attn:
            raise PlanError("nas-attn attention has neither add_bias_kv nor add_zero_attn")
        return _build(self.self_choice, embed_dim, cfg.decoder.attention_heads, cfg)

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> FairseqAttention:
        assert self.encoder_choice is not None
        return _build(
            self.encoder_choice,
            embed_dim,
            cfg.decoder.attention_heads,
            cfg,
            encoder_dim=cfg.encoder.embed_dim,
        )


class PlannedEncoder(TransformerEncoderBase):
    """fairseq's encoder, each layer built for its own choice."""

    def __init__(
        self, cfg: Any, dictionary: Any, embed_tokens: nn.Module, plan: AttentionPlan
    ) -> None:
        self._choices = iter(plan.layers("encoder_self", cfg.encoder.layers))
        super().__init__(cfg, dictionary, embed_tokens)
        del self._choices

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        layer = PlannedEncoderLayer(cfg, next(self._choices), return_fc=self.return_fc)
        return _wrap(layer, cfg)


class PlannedDecoder(TransformerDecoderBase):
    """fairseq's decoder, each layer built for its own choices."""

    def __init__(
        self,
        cfg: Any,
        dictionary: Any,
        embed_tokens: nn.Module,
        plan: AttentionPlan,
        no_encoder_attn: bool = False,
    ) -> None:
        layers = cfg.decoder.layers
        encoder_choices: tuple[AttentionChoice | None, ...] = (None,) * layers
        if not no_encoder_attn:
            encoder_choices = plan.layers("encoder_decoder", layers)
        self_choices = plan.layers("decoder_self", layers)
        self._choices = iter(zip(self_choices, encoder_choices, strict=True))
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=no_encoder_attn)
        del self._choices

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        return _wrap(PlannedDecoderLayer(cfg, *next(self._choices)), cfg)


def _build(
    choice: AttentionChoice,
    embed_dim: int,
    num_heads: int,
    cfg: Any,
    encoder_dim: int | None = None,
) -> FairseqAttention:
    if cfg.quant_noise.pq > 0:
        raise PlanError("nas-attn attention does not support --quant-noise-pq")
    attention = build_attention(
        choice.scheme,
        embed_dim,
        num_heads,
        kdim=encoder_dim,
        vdim=encoder_dim,
        dropout=cfg.attention_dropout,
        **dict(choice.options),
    )
    return FairseqAttention(attention, encoder_decoder_attention=encoder_dim is not None)


def _wrap(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP, as fairseq wraps its own layers."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    min_params = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    wrapped: nn.Module = fsdp_wrap(layer, min_num_params=min_params)
    return wrapped


def _add_plan_args(parser: Any, scheme: str) -> None:
    parser.add_argument(
        "--attention-plan",
        metavar="FILE-OR-JSON",
        help="scheme and options for each site and layer, as a JSON file or JSON text; sites left "
        f"out use {scheme} with the options given as flags",
    )
    options = SCHEMES[scheme].options
    hints = typing.get_type_hints(options)
    for option in fields(options):
        flag = "--" + option.name.replace("_", "-")
        hint, text = hints[option.name], option.metadata["help"]
        if hint is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif typing.get_origin(hint) is typing.Literal:
            parser.add_argument(flag, choices=typing.get_args(hint), help=text)
        else:
            parts = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
            parser.add_argument(flag, type=parts[0], help=text)


def _resolve_plan(args: argparse.Namespace, scheme: str, sites: tuple[str, ...]) -> AttentionPlan:
    """The plan that the flags describe, with the sites that the model has."""
    names = [option.name for option in fields(SCHEMES[scheme].options)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    default = AttentionPlan.uniform(AttentionChoice.of(scheme, **given), sites)
    text = getattr(args, "attention_plan", None)
    if text is None:
        return default
    plan = AttentionPlan.parse(text).over(default)
    foreign = [site for site, _ in plan if site not in sites]
    if foreign:
        raise PlanError(f"--attention-plan names {', '.join(foreign)}, which this model lacks")
    return plan


class PlannedTransformer(TransformerModel):
    """Encoder-decoder Transformer; registered once for each scheme."""

    scheme: str
    sites = SITES

    @classmethod
    def add_args(cls, parser: Any) -> None:
        TransformerModel.add_args(parser)
        _add_plan_args(parser, cls.scheme)

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Any, embed_tokens: nn.Module) -> PlannedEncoder:
        plan = _resolve_plan(args, cls.scheme, cls.sites)
        return PlannedEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens, plan)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: nn.Module) -> PlannedDecoder:
        cfg = TransformerConfig.from_namespace(args)
        plan = _resolve_plan(args, cls.scheme, cls.sites)
        return PlannedDecoder(
            cfg, tgt_dict, embed_tokens, plan, no_encoder_attn=cfg.no_cross_attention
        )


class PlannedLanguageModel(TransformerLanguageModel):
    """Decoder-only Transformer; registered once for each scheme."""

    scheme: str
    sites = ("decoder_self",)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        gen_parser_from_dataclass(parser, TransformerLanguageModelConfig(), delete_default=True)
        _add_plan_args(parser, cls.scheme)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> PlannedLanguageModel:
        plan = _resolve_plan(args, cls.scheme, cls.sites)
        layers = args.decoder_layers
        if args.decoder_layers_to_keep:
            layers = len(args.decoder_layers_to_keep.split(","))
        # The stock model, without layers, checks the arguments and makes the embedding.
        shell = argparse.Namespace(**vars(args))
        shell.decoder_layers, shell.decoder_layers_to_keep = 0, None
        embed_tokens = TransformerLanguageModel.build_model(shell, task).decoder.embed_tokens
        shell.decoder_layers = layers
        decoder = PlannedDecoder(
            TransformerConfig.from_namespace(shell),
            task.target_dictionary,
            embed_tokens,
            plan,
            no_encoder_attn=True,
        )
        return cls(decoder)


def _stock_sizes(model: str) -> Iterator[tuple[str, Callable[[Any], None]]]:
    for size in ARCH_MODEL_INV_REGISTRY[model]:
        yield size, ARCH_CONFIG_REGISTRY[size]


def _register(
    family: str, planned: Any, scheme: str, base: Callable[[Any], None] | None = None
) -> None:
    name = f"{scheme}_{family}"
    model = type(f"{planned.__name__}_{scheme}", (planned,), {"scheme": scheme})
    register_model(name)(model)
    for size, stock in _stock_sizes(family):

        def architecture(
            args: Any, stock: Callable[[Any], None] = stock, model: Any = model
        ) -> None:
            stock(args)
            if base is not None:
                base(args)
            # A checkpoint must explain itself when the file is gone, so the plan is stored whole.
            args.attention_plan = _resolve_plan(args, model.scheme, model.sites).dumps()

        register_model_architecture(name, f"{scheme}_{size}")(architecture)


for _scheme in SCHEMES:
    _register("transformer", PlannedTransformer, _scheme)
    _register("transformer_lm", PlannedLanguageModel, _scheme, base_lm_architecture)
