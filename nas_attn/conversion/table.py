"""Which attention of other libraries is known, by the classes' full names.

A class stands here if its `forward` is multi-head attention of `hidden_states` under
`attention_mask` and nothing else. Conversion still compares each module on a probe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a class keeps multi-head attention.

    Args:
        projections: Attributes of queries, keys, values and the output, all `nn.Linear`.
        heads: Attribute with their number.
        dropout: Attributes, of which one is the probability or the `nn.Dropout` of weights.
        output_outside: Whether the output projection belongs to the module around, as BERT has it.
    """

    projections: tuple[str, str, str, str]
    heads: str
    dropout: tuple[str, ...]
    output_outside: bool = False

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

ARGUMENTS = frozenset(
    (
        "hidden_states", "attention_mask", "head_mask", "output_attentions",
        "cache", "past_key_value", "past_key_values", "cache_position",
        "encoder_hidden_states", "encoder_attention_mask",
    )
)  # fmt: skip
"""What a known `forward` may take; all but the first two and `output_attentions` must be None."""


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
