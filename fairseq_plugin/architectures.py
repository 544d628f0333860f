"""Architectures: for every attention scheme, fairseq's Transformers in fairseq's own sizes.

`transformer_iwslt_de_en` becomes `<scheme>_transformer_iwslt_de_en`, and so for all sizes of
`transformer`, `transformer_lm` and `roberta`. The scheme's options are flags; `--attention-plan`
sets scheme and options for every site and layer and is stored in the checkpoint as JSON.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.roberta import model as roberta
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.models.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
    base_lm_architecture,
)
from torch import Tensor, nn

from nas_attn.attention import SCHEMES
from nas_attn.errors import PlanError
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan

from . import configs
from .adapter import SOURCE_CACHES, warn_of_stock_weights
from .bfloat16 import MayTrainInBFloat16
from .layers import PlannedDecoder, PlannedEncoder


def _add_plan_args(parser: Any, scheme: str) -> None:
    parser.add_argument(
        "--attention-plan",
        metavar="FILE-OR-JSON",
        type=configs.plan_argument,
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
    SCHEMES[scheme].check_options(given)
    default = AttentionPlan.uniform(AttentionChoice.of(scheme, **given), sites)
    if default.source_fault():  # the plan of an architecture that is named after no attention
        source = AttentionPlan.uniform(AttentionChoice("multi_head"), ("encoder_decoder",))
        default = source.over(default)
    given_plan = getattr(args, "attention_plan", None)
    if given_plan is None:
        return default
    plan = configs.plan_of(given_plan).over(default)
    foreign = [site for site, _ in plan if site not in sites]
    if foreign:
        raise PlanError(f"the attention plan names {', '.join(foreign)}, which this model lacks")
    plan.check_source()
    return plan


class TakesStockWeights:
    """Mix-in before a fairseq model: says what loading weights of fairseq's own attention means."""

    def upgrade_state_dict(self: Any, state_dict: dict[str, Tensor]) -> None:
        warn_of_stock_weights(self, state_dict)
        super().upgrade_state_dict(state_dict)  # type: ignore[misc]


class PlannedTransformer(TakesStockWeights, TransformerModel):
    """Encoder-decoder Transformer; registered once for each scheme."""

    scheme: str
    sites = SITES

    @classmethod
    def add_args(cls, parser: Any) -> None:
        TransformerModel.add_args(parser)
        _add_plan_args(parser, cls.scheme)
        parser.add_argument(
            "--source-cache",
            choices=SOURCE_CACHES,
            help="what decoding keeps of the source: keys_values for every layer (the default), or "
            "the encoder's output once for all of them, with less memory and a little more time",
        )

    @classmethod
    def build_model(cls, args: Any, task: Any) -> PlannedTransformer:
        with configs.as_namespace(args) as given:
            model: PlannedTransformer = super().build_model(given, task)
            # The weights are the model's now; a checkpoint needs the file no more.
            given.encoder_embed_path = given.decoder_embed_path = None
        return model

    @classmethod
    def build_embedding(
        cls, args: Any, dictionary: Any, embed_dim: int, path: str | None = None
    ) -> nn.Module:
        if path and not Path(path).is_file():
            raise PlanError(f"the file of embeddings {path} is missing or no regular file")
        module: nn.Module = super().build_embedding(args, dictionary, embed_dim, path)
        return module

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Any, embed_tokens: nn.Module) -> PlannedEncoder:
        plan = _resolve_plan(args, cls.scheme, cls.sites)
        return PlannedEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens, plan)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: nn.Module) -> PlannedDecoder:
        cfg = TransformerConfig.from_namespace(args)
        plan = _resolve_plan(args, cls.scheme, cls.sites)
        decoder = PlannedDecoder(
            cfg, tgt_dict, embed_tokens, plan, no_encoder_attn=cfg.no_cross_attention
        )
        decoder.keep_of_source(getattr(args, "source_cache", None) or "keys_values")
        return decoder


class PlannedLanguageModel(TakesStockWeights, TransformerLanguageModel):
    """Decoder-only Transformer; registered once for each scheme."""

    scheme: str
    sites = ("decoder_self",)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        gen_parser_from_dataclass(parser, TransformerLanguageModelConfig(), delete_default=True)
        _add_plan_args(parser, cls.scheme)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> PlannedLanguageModel:
        with configs.as_namespace(args) as given:
            plan = _resolve_plan(given, cls.scheme, cls.sites)
            layers = given.decoder_layers
            if given.decoder_layers_to_keep:
                layers = len(given.decoder_layers_to_keep.split(","))
            # The stock model, without layers, checks the arguments and makes the embedding.
            shell = argparse.Namespace(**vars(given))
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


class PlannedRobertaEncoder(roberta.RobertaEncoder):
    """fairseq's RoBERTa encoder with the attention that a plan chooses."""

    def __init__(self, args: Any, dictionary: Any, plan: AttentionPlan) -> None:
        self._plan = plan
        super().__init__(args, dictionary)

    def build_encoder(self, args: Any, dictionary: Any, embed_tokens: nn.Module) -> PlannedEncoder:
        cfg = TransformerConfig.from_namespace(args)
        return PlannedEncoder(cfg, dictionary, embed_tokens, self._plan)


class PlannedRoberta(TakesStockWeights, roberta.RobertaModel):
    """Masked language model with classification heads; registered once for each scheme.

    Weights start as fairseq starts RoBERTa's: every linear map normal with deviation 0.02.
    """

    scheme: str
    sites = ("encoder_self",)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        roberta.RobertaModel.add_args(parser)
        _add_plan_args(parser, cls.scheme)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> PlannedRoberta:
        with configs.as_namespace(args) as given:
            roberta.base_architecture(given)
            if given.mha_heads_to_keep != -1 or given.mha_reg_scale_factor != 0.0:
                raise PlanError(
                    "--mha-heads-to-keep and --mha-reg-scale-factor prune stock heads only"
                )
            if getattr(given, "max_positions", None) is None:
                given.max_positions = given.tokens_per_sample
            plan = _resolve_plan(given, cls.scheme, cls.sites)
            encoder = PlannedRobertaEncoder(given, task.source_dictionary, plan)
        return cls(given, encoder)

    def apply(self, fn: Callable[[nn.Module], None]) -> PlannedRoberta:
        """Initialise, unless the model has no storage: fairseq's function needs numbers."""
        if not any(parameter.is_meta for parameter in self.parameters()):
            super().apply(fn)
        return self


def _stock_sizes(model: str) -> Iterator[tuple[str, Callable[[Any], None]]]:
    for size in ARCH_MODEL_INV_REGISTRY[model]:
        yield size, ARCH_CONFIG_REGISTRY[size]


def _language_model(args: argparse.Namespace) -> None:
    """Fill in all arguments of a language model; fairseq's own function leaves some out."""
    base_lm_architecture(args)
    for field in fields(TransformerLanguageModelConfig):
        given = hasattr(args, field.name) or field.default is MISSING
        if not given and not str(field.default).startswith("${"):
            setattr(args, field.name, field.default)


def _register(
    family: str, planned: Any, scheme: str, base: Callable[[Any], None] | None = None
) -> None:
    name = f"{scheme}_{family}"
    bases = (MayTrainInBFloat16, planned)
    model = type(f"{planned.__name__}_{scheme}", bases, {"scheme": scheme})
    register_model(name)(model)
    for size, stock in _stock_sizes(family):

        def fill(args: argparse.Namespace, stock: Callable[[Any], None] = stock) -> None:
            normalize_before = getattr(args, "decoder_normalize_before", None)
            stock(args)
            if base is not None:
                base(args)
            if normalize_before is not None:
                # fairseq's language models overrule what a converted checkpoint says here.
                args.decoder_normalize_before = normalize_before
            # A checkpoint must explain itself when the file is gone, so the plan is stored whole.
            args.attention_plan = _resolve_plan(args, scheme, planned.sites).dumps()

        arch = f"{scheme}_{size}"

        def architecture(
            args: Any, arch: str = arch, fill: Callable[[argparse.Namespace], None] = fill
        ) -> None:
            configs.complete(args, arch, model, fill)

        register_model_architecture(name, arch)(architecture)
        configs.offer(arch)


def register_scheme(scheme: str) -> None:
    """Register the architectures of a scheme; it is done for all schemes that are there at import.

    Args:
        scheme: Name in `nas_attn.attention.SCHEMES`.
    """
    _register("transformer", PlannedTransformer, scheme)
    _register("transformer_lm", PlannedLanguageModel, scheme, _language_model)
    _register("roberta", PlannedRoberta, scheme)


for _scheme in SCHEMES:
    register_scheme(_scheme)
