"""fairseq's Transformer encoder and decoder, each layer built with the attention a plan chooses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from fairseq.modules import transformer_layer
from fairseq.modules.checkpoint_activations import _checkpointed_forward, checkpoint_wrapper
from torch import Tensor, nn

from nas_attn.attention import build_attention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan

from .adapter import SOURCE_CACHES, FairseqAttention, SourceCache
from .beams import follow, repeats


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
        return _build(
            self.self_choice,
            embed_dim,
            cfg.decoder.attention_heads,
            cfg,
            decoder_self_attention=True,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> FairseqAttention:
        assert self.encoder_choice is not None
        return _build(
            self.encoder_choice,
            embed_dim,
            cfg.decoder.attention_heads,
            cfg,
            encoder_dim=cfg.encoder.embed_dim,
        )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """fairseq's; attention to the encoder also learns which queries are padding."""
        if self.encoder_attn is not None:
            self.encoder_attn.query_padding_mask = kwargs.get("self_attn_padding_mask")
        return super().forward(x, *args, **kwargs)


class EncoderOut(dict[str, list[Tensor]]):
    """What fairseq's encoders return, each row of it for so many hypotheses side by side."""

    beams = 1


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

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Follow beam search, without repeating a sentence for each of its hypotheses.

        fairseq first repeats every sentence, and then copies all rows at every step. Here rows stay
        single (our cross-attention understands that) and move only when a sentence has ended.
        """
        sentences = encoder_out["encoder_out"][0].size(1)
        single = torch.arange(sentences, device=new_order.device)
        beams = getattr(encoder_out, "beams", 1)
        times = repeats(new_order, sentences)
        if beams == 1 and times > 1 and not self.cfg.cross_self_attention:
            rows, beams = single, times
        else:
            rows, beams = follow(new_order, beams)
        kept = EncoderOut(encoder_out)
        if not torch.equal(rows, single):
            kept.update(super().reorder_encoder_out(encoder_out, rows))
        kept.beams = beams
        return kept


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

    def keep_of_source(self, source_cache: SourceCache) -> None:
        """Set what attention to the encoder keeps while it decodes.

        Raises:
            PlanError: there is no such way.
        """
        if source_cache not in SOURCE_CACHES:
            raise PlanError(
                f"source_cache must be {', '.join(SOURCE_CACHES)}, but is {source_cache!r}"
            )
        for module in self.modules():
            if isinstance(module, FairseqAttention):
                module.source_cache = source_cache

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        return _wrap(PlannedDecoderLayer(cfg, *next(self._choices)), cfg)


def _build(
    choice: AttentionChoice,
    embed_dim: int,
    num_heads: int,
    cfg: Any,
    encoder_dim: int | None = None,
    decoder_self_attention: bool = False,
) -> FairseqAttention:
    if cfg.quant_noise.pq > 0:
        raise PlanError("nas-attn attention does not support --quant-noise-pq")
    if cfg.encoder.xformers_att_config or cfg.decoder.xformers_att_config:
        raise PlanError("the plan chooses the attention, so --*-xformers-att-config cannot")
    options: dict[str, Any] = dict(choice.options)
    attention = build_attention(
        choice.scheme,
        embed_dim,
        num_heads,
        kdim=encoder_dim,
        vdim=encoder_dim,
        dropout=cfg.attention_dropout,
        **options,
    )
    return FairseqAttention(
        attention,
        encoder_decoder_attention=encoder_dim is not None,
        decoder_self_attention=decoder_self_attention,
    )


def _wrap(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP, as fairseq wraps its own layers."""
    if cfg.checkpoint_activations:
        layer = _checkpointed(layer, offload_to_cpu=cfg.offload_activations)
    min_params = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    wrapped: nn.Module = fsdp_wrap(layer, min_num_params=min_params)
    return wrapped


def _checkpointed(layer: nn.Module, *, offload_to_cpu: bool) -> nn.Module:
    """A layer as `checkpoint_wrapper` wraps it; what its heads record keeps its gradient."""
    layer = checkpoint_wrapper(layer, offload_to_cpu=offload_to_cpu)
    modules = [m for m in layer.modules() if isinstance(m, GroupedHeadAttention)]
    if modules:
        forward: Any = layer.precheckpoint_forward
        layer.forward = functools.partial(_recorded, forward, modules, offload_to_cpu)
    return layer


def _recorded(
    forward: Callable[..., Any],
    modules: Sequence[GroupedHeadAttention],
    offload_to_cpu: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a layer with checkpointing, and give its modules what they recorded as outputs of it.

    The first run has no graph, and the second comes with the backward pass, when nobody records any
    more: only what is an output of both has a gradient.
    """
    recording = [module for module in modules if module.is_recording]
    if not recording:
        return _checkpointed_forward(forward, offload_to_cpu, *args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        before = [(module.is_recording, module.products) for module in recording]
        for module in recording:
            module.is_recording = True
        try:
            outputs = forward(*args, **kwargs)
            records = [module.products for module in recording]
        finally:
            for module, (is_recording, products) in zip(recording, before, strict=True):
                module.is_recording, module.products = is_recording, products
        return (*(outputs if isinstance(outputs, tuple) else (outputs,)), *records)

    outputs = _checkpointed_forward(run, offload_to_cpu, *args, **kwargs)
    for module, products in zip(recording, outputs[-len(recording) :], strict=True):
        module.products = products
    outputs = outputs[: -len(recording)]
    return outputs[0] if len(outputs) == 1 else outputs
