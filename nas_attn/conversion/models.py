"""Conversion of whole PyTorch models: torch's own attention and Hugging Face's.

Known are `torch.nn.MultiheadAttention`, and by their attributes the self-attention of BERT,
RoBERTa, DistilBERT and ViT as transformers 5 has them; transformers itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, MultiHeadAttention
from nas_attn.conversion.convert import Errors, convert_attention
from nas_attn.conversion.metric import Call, recorded
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan

Linears = tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]
"""Of queries, keys, values and the output."""


@dataclass(frozen=True, kw_only=True)
class ConvertedModule:
    """What became of one attention module.

    Args:
        name: in the model, such as `encoder.layer.0.attention.self`.
        choice: that it was converted to.
        errors: on the calibration data; None without them.
    """

    name: str
    choice: AttentionChoice
    errors: Errors | None


class TimeFirst(nn.Module):
    """An attention module called with (time, batch, width), as `batch_first=False` asks."""

    batch_first = False
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `Attention.forward`, but for the order of time and batch."""
        first = query.transpose(0, 1)
        second = first if key is query else key.transpose(0, 1)
        third = second if value is key else value.transpose(0, 1)
        output, weights = self.attention(first, second, third, *masks, **more)
        return output.transpose(0, 1), weights


class HiddenStates(nn.Module):
    """An attention module called as Hugging Face's encoders call theirs."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within `hidden_states` (B, T, width).

        Args:
            attention_mask: (B, 1, T, T); bool, true where attention is allowed, or float, added to
                the scores.
            more: nothing of it is used.

        Raises:
            NotImplementedError: keys and values of earlier calls, or of an encoder, are passed.
        """
        for name in ("cache", "past_key_values", "past_key_value", "encoder_hidden_states"):
            if more.get(name) is not None:
                raise NotImplementedError(f"converted attention takes no {name}")
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = ~attention_mask
        output, weights = self.attention(
            hidden_states,
            hidden_states,
            hidden_states,
            attn_mask=attention_mask,
            need_weights=bool(more.get("output_attentions")),
            average_attn_weights=False,
        )
        return output, weights


@dataclass
class _Slot:
    """Where a model keeps an attention module."""

    parent: nn.Module
    name: str
    attention: Attention
    wrap: type[TimeFirst] | type[HiddenStates] | None

    def put(self, attention: Attention) -> None:
        self.attention = attention
        setattr(self.parent, self.name, attention if self.wrap is None else self.wrap(attention))


def convert_model(
    model: nn.Module,
    plan: AttentionPlan,
    run: Callable[[nn.Module], object] | None = None,
    *,
    refit: bool = True,
    force: bool = False,
) -> list[ConvertedModule]:
    """Replace the attention of a model, in place, by what a plan says.

    Sites follow from names: attention to an encoder (`multihead_attn` of torch's decoder layers) is
    encoder_decoder, else what has `decoder` in its name is decoder_self and all other encoder_self;
    layers are counted in the order of the model. Sites that the plan leaves out become multi_head.

    Args:
        model: trained.
        plan: scheme and options for each site and layer.
        run: runs the model on data such as it is for, to calibrate by (`lambda m: m(**batch)`).
        refit: with data, solve output projections anew.
        force: also convert to schemes that cannot inherit.

    Returns:
        What was converted, in the order of the model.

    Raises:
        PlanError: there is no attention that is known, or the plan does not fit.
    """
    found: dict[tuple[str, int], str] = {}
    counts: dict[str, int] = {}
    for name, _ in _known(model):
        site = _site(name)
        found[site, counts.get(site, 0)] = name
        counts[site] = counts.get(site, 0) + 1
    if not found:
        raise PlanError("the model has no attention that is known here")
    foreign = [site for site, _ in plan if site not in counts]
    if foreign:
        raise PlanError(f"the plan names {', '.join(foreign)}, which this model lacks")
    default = AttentionPlan.uniform(AttentionChoice.of("multi_head"), tuple(counts))
    layers = {site: plan.over(default).layers(site, count) for site, count in counts.items()}
    slots = {name: _adopt(model, name, module) for name, module in list(_known(model))}
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which needs torch's own fused weights
    calls: dict[str, list[Call]] = {name: [] for name in slots}
    if run is not None:
        was_training = model.training
        with torch.no_grad(), recorded({n: s.attention for n, s in slots.items()}) as calls:
            run(model.eval())
        model.train(was_training)
    converted = []
    for (site, layer), name in found.items():
        choice = layers[site][layer]
        try:
            made = convert_attention(
                slots[name].attention, choice, calls[name], refit=refit, force=force
            )
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from None
        slots[name].put(made.module)
        converted.append(ConvertedModule(name=name, choice=choice, errors=made.errors))
    return converted


def _site(name: str) -> str:
    if name.rpartition(".")[2] == "multihead_attn":
        return "encoder_decoder"
    return "decoder_self" if "decoder" in name else "encoder_self"


def _known(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) or _hugging_face(model, name) is not None:
            yield name, module


def _adopt(model: nn.Module, name: str, module: nn.Module) -> _Slot:
    """Put multi-head attention of ours with the same weights in a module's place."""
    parent = model.get_submodule(name.rpartition(".")[0])
    slot = name.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention):
        adopted = _Slot(parent, slot, _of_torch(module), None if module.batch_first else TimeFirst)
    else:
        parts = _hugging_face(model, name)
        assert parts is not None
        linears, heads, dropout = parts
        adopted = _Slot(parent, slot, _of_linears(linears, heads, dropout), HiddenStates)
        if hasattr(module, "query"):  # of BERT: the output projection is its neighbour's
            setattr(parent.output, "dense", nn.Identity())  # noqa: B010
    adopted.attention.train(module.training)
    adopted.put(adopted.attention)
    return adopted


def _hugging_face(model: nn.Module, name: str) -> tuple[Linears, int, float] | None:
    """Projections, heads and dropout of an attention module of Hugging Face's."""
    module: Any = model.get_submodule(name)
    if getattr(module, "is_causal", False):
        return None
    if all(hasattr(module, part) for part in ("query", "key", "value", "num_attention_heads")):
        parent: Any = model.get_submodule(name.rpartition(".")[0])
        output = getattr(getattr(parent, "output", None), "dense", None)
        if output is None or getattr(parent, "is_cross_attention", False):
            return None
        linears = (module.query, module.key, module.value, output)
        return linears, module.num_attention_heads, module.dropout.p
    if all(hasattr(module, part) for part in ("q_lin", "k_lin", "v_lin", "out_lin", "n_heads")):
        linears = (module.q_lin, module.k_lin, module.v_lin, module.out_lin)
        return linears, module.n_heads, module.dropout.p
    vit = ("q_proj", "k_proj", "v_proj", "o_proj", "num_attention_heads", "attention_dropout")
    if all(hasattr(module, part) for part in vit):
        linears = (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
        return linears, module.num_attention_heads, module.attention_dropout
    return None


def _of_torch(module: nn.MultiheadAttention) -> Attention:
    if module.bias_k is not None or module.add_zero_attn:
        raise PlanError("attention with add_bias_kv or add_zero_attn cannot be converted")
    weight = module.in_proj_weight
    if weight is None:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    else:
        weights = weight.chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return _multi_head(
        [*zip(weights, biases, strict=True), (module.out_proj.weight, module.out_proj.bias)],
        module.num_heads,
        module.dropout,
    )


def _of_linears(linears: Linears, num_heads: int, dropout: float) -> Attention:
    return _multi_head([(part.weight, part.bias) for part in linears], num_heads, dropout)


def _multi_head(
    parts: Sequence[tuple[Tensor, Tensor | None]], num_heads: int, dropout: float
) -> Attention:
    (query, _), (key, _), (value, _), _ = parts
    module = MultiHeadAttention(
        query.size(1),
        num_heads,
        kdim=key.size(1),
        vdim=value.size(1),
        dropout=dropout,
        bias=any(bias is not None for _, bias in parts),
    ).to(query)
    projections = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
    with torch.no_grad():
        for projection, (weight, bias) in zip(projections, parts, strict=True):
            if projection.weight.shape != weight.shape:
                raise PlanError("heads of another width than the model's over their number")
            projection.weight.copy_(weight)
            if projection.bias is not None:
                projection.bias.zero_() if bias is None else projection.bias.copy_(bias)
    return module
