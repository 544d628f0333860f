"""Which attention of other libraries is known, by the classes' full names.

A class stands here if its `forward` is multi-head attention of `hidden_states` under
`attention_mask` and nothing else. Conversion still compares each module on a probe.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a class keeps multi-head attention.

    Args:
        projections: attributes of queries, keys, values and the output, all `nn.Linear`.
        heads: attribute with their number.
        dropout: attributes, of which one is the probability or the `nn.Dropout` of weights.
        output_outside: the output projection belongs to the module around, as BERT has it.
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

PROJECTION_NAMES = (
    ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"), ("wq", "wk", "wv"), ("w_q", "w_k", "w_v"), ("to_q", "to_k", "to_v"),
    ("query_proj", "key_proj", "value_proj"), ("q_linear", "k_linear", "v_linear"),
    ("qkv",), ("qkv_proj",), ("to_qkv",), ("query_key_value",), ("Wqkv",), ("c_attn",),
    ("in_proj_weight",),
)  # fmt: skip
"""Attributes by which attention of any library is known, whatever its class is called."""

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
