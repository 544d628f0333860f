"""Which attention of other libraries is known, by the classes' full names.

A class stands here if its `forward` is multi-head attention under a mask, perhaps with a cache, and
nothing else. Conversion still compares each module on a probe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family of classes keeps and calls multi-head attention.

    Args:
        projections: Attributes of queries, keys, values and the output. One that is named several
            times makes these at once, side by side in this order.
        heads: Attribute with their number.
        dropout: Attributes, of which one is the probability or the `nn.Dropout` of weights.
        scale: Attribute with the factor of the scores; without it they are divided by the root of a
            head's width.
        output_outside: Whether the output projection belongs to the module around, as BERT has it.
        states: Argument with what is attended to; empty if that is always the first argument.
        mask: Argument with the mask.
        ignored: Arguments that the class takes and does not use.
        position_bias: Whether scores get a bias for each head and distance, which the first layer
            makes and returns.
        kept: Parts that go on as they are.
        output_dropout: Part of `kept` that is applied to the output; empty if there is none.
        returns: What `forward` returns; one thing alone is no tuple.
        sites: Parts of names, and the site of a module that has one in its name.
        cross: Layout of those modules of the class whose `is_cross_attention` is true.
    """

    projections: tuple[str, str, str, str]
    heads: str
    dropout: tuple[str, ...]
    scale: str = ""
    output_outside: bool = False
    states: str = ""
    mask: str = "attention_mask"
    ignored: tuple[str, ...] = ()
    position_bias: bool = False
    kept: tuple[str, ...] = ()
    output_dropout: str = ""
    returns: tuple[str, ...] = ("output", "weights")
    sites: tuple[tuple[str, str], ...] = ()
    cross: Layout | None = None

    @property
    def arguments(self) -> set[str]:
        """What `forward` takes that this layout knows."""
        biased = {"position_bias"} if self.position_bias else set()
        return {self.mask, self.states, *self.ignored, *biased}

    @property
    def own_projections(self) -> tuple[str, ...]:
        """Those that are the module's own."""
        return self.projections[:3] if self.output_outside else self.projections


BERT = Layout(
    projections=("query", "key", "value", "output.dense"),
    heads="num_attention_heads",
    dropout=("dropout",),
    output_outside=True,
)
DISTILBERT = Layout(
    projections=("q_lin", "k_lin", "v_lin", "out_lin"), heads="n_heads", dropout=("dropout",)
)
VIT = Layout(
    projections=("q_proj", "k_proj", "v_proj", "o_proj"),
    heads="num_attention_heads",
    dropout=("attention_dropout",),
)
GPT2 = Layout(
    projections=("c_attn", "c_attn", "c_attn", "c_proj"),
    heads="num_heads",
    dropout=("attn_dropout",),
    scale="scaling",
    kept=("resid_dropout",),
    output_dropout="resid_dropout",
    cross=Layout(
        projections=("q_attn", "c_attn", "c_attn", "c_proj"),
        heads="num_heads",
        dropout=("attn_dropout",),
        scale="scaling",
        states="encoder_hidden_states",
        mask="encoder_attention_mask",
        ignored=("attention_mask",),
        kept=("resid_dropout",),
        output_dropout="resid_dropout",
    ),
)

CACHES = ("cache", "past_key_values", "past_key_value")
"""What versions of transformers call the keys and values of earlier calls."""

ARGUMENTS = frozenset(
    (
        "hidden_states", "attention_mask", "head_mask", "output_attentions", "cache_position",
        "encoder_hidden_states", "encoder_attention_mask", *CACHES,
    )
)  # fmt: skip
"""What a known `forward` may take beside what its layout names; what nobody uses must be None."""

LINEARS = {
    "torch.nn.modules.linear.Linear": False,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": False,
    "transformers.pytorch_utils.Conv1D": True,
}
"""Classes of projections, and whether their weights are (inputs, outputs)."""

CROSS = ("multihead_attn", "encoder_attn", "EncDecAttention", "crossattention")
"""In the name of a module: it attends to an encoder."""


def _names(entries: str) -> list[str]:
    """`family:Class`, `family` or `family/module:Class` to full names of classes."""
    names = []
    for entry in entries.split():
        place, _, kind = entry.partition(":")
        family, _, module = place.partition("/")
        names.append(f"transformers.models.{family}.modeling_{module or family}.{kind}")
    return names


HUGGING_FACE: dict[str, Layout] = {
    **dict.fromkeys(
        _names(
            "align:AlignTextSelfAttention altclip:AltRobertaSelfAttention bert:BertSelfAttention "
            "bert_generation:BertGenerationSelfAttention camembert:CamembertSelfAttention "
            "chinese_clip:ChineseCLIPTextSelfAttention clap:ClapTextSelfAttention "
            "data2vec/data2vec_text:Data2VecTextSelfAttention electra:ElectraSelfAttention "
            "ernie:ErnieSelfAttention flava:FlavaSelfAttention layoutlm:LayoutLMSelfAttention "
            "markuplm:MarkupLMSelfAttention megatron_bert:MegatronBertSelfAttention "
            "rembert:RemBertSelfAttention roberta:RobertaSelfAttention "
            "roberta_prelayernorm:RobertaPreLayerNormSelfAttention roc_bert:RoCBertSelfAttention "
            "splinter:SplinterSelfAttention tapas:TapasSelfAttention vilt:ViltSelfAttention "
            "visual_bert:VisualBertSelfAttention xlm_roberta:XLMRobertaSelfAttention "
            "xlm_roberta_xl:XLMRobertaXLSelfAttention xmod:XmodSelfAttention"
        ),
        BERT,
    ),
    **dict.fromkeys(_names("distilbert:DistilBertSelfAttention"), DISTILBERT),
    **dict.fromkeys(_names("gpt2:GPT2Attention"), GPT2),
    **dict.fromkeys(
        _names(
            "audio_spectrogram_transformer:ASTAttention deit:DeiTAttention "
            "dinov2:Dinov2Attention dinov2_with_registers:Dinov2WithRegistersAttention "
            "ijepa:IJepaAttention pixio:PixioAttention tipsv2:Tipsv2VisionAttention "
            "vit:ViTAttention vit_mae:ViTMAEAttention vit_msn:ViTMSNAttention "
            "vivit:VivitAttention"
        ),
        VIT,
    ),
}
"""Hugging Face's, of transformers 5."""

FUSED_NAMES = ("query_key_value", "c_attn", "in_proj_weight")
"""Attributes that make queries, keys and values at once; so do all with `qkv` in their names."""

PARTS = {
    "queries": ("keys", "values"),
    "query": ("key", "value"),
    "q": ("k", "v"),
}
"""What queries are called in names of attributes, and keys and values beside them."""


def layout_of(module: Any) -> Layout | None:
    """The layout of a module of a known class; None of any other."""
    layout = HUGGING_FACE.get(full_name(type(module)))
    if layout is not None and getattr(module, "is_cross_attention", False):
        return layout.cross
    return layout


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def has_projections(names: Collection[str]) -> bool:
    """Whether attributes tell attention of any library, whatever its class is called.

    They are alike but for queries, keys and values: `q_proj`, `k_proj` and `v_proj`, or `to_q` and
    `to_kv`.
    """
    if any(name in FUSED_NAMES or "qkv" in name.lower() for name in names):
        return True
    for name in names:
        for part, others in PARTS.items():
            for match in re.finditer(part, name, re.IGNORECASE):
                spell = _spelling(match[0])
                keys, values, both = (
                    name[: match.start()] + spell(other) + name[match.end() :]
                    for other in (*others, "".join(others))
                )
                if both in names or (keys in names and values in names):
                    return True
    return False


def _spelling(word: str) -> Callable[[str], str]:
    if word.isupper():
        return str.upper
    return str.title if word.istitle() else str.lower


WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "convert its .module, then wrap that again",
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "convert its .module, then wrap that again"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "convert the model before it is sharded"
    ),
    "torch._dynamo.eval_frame.OptimizedModule": (
        "convert the model that was compiled (its _orig_mod), then compile that again"
    ),
    "torch.fx.graph_module.GraphModule": "convert the model before it is traced",
    "torch.jit._script.ScriptModule": "convert the model before it is scripted or traced",
}
"""Classes whose instances hold a model in another form, and what to do instead."""
