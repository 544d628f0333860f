"""Find the attention of a model, and make attention of ours that computes the same.

Nothing here changes the model but `Slot.put`, which cannot fail.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, MultiHeadAttention
from nas_attn.conversion.probes import check, hidden_states_probes, torch_probes
from nas_attn.conversion.slots import Found, Slot
from nas_attn.conversion.table import (
    ARGUMENTS,
    LINEARS,
    WRAPPERS,
    Layout,
    full_name,
    has_projections,
    layout_of,
)
from nas_attn.conversion.wrappers import TimeFirst, argument_names, hidden_states_for
from nas_attn.errors import PlanError

ATTENTION_NAME = re.compile(r"(?i:attention|attn)|MHS?A|MLA")
"""In the name of a class: it is attention, or holds it."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def find(model: nn.Module) -> list[Found]:
    """All attention of a model, in its order.

    Raises:
        PlanError: there is none, or there is attention that is not known, or the model is held by
            something that would not see the change.
    """
    _refuse_wrappers(model)
    known: dict[int, tuple[str, nn.Module]] = {}
    unknown: dict[str, list[str]] = defaultdict(list)
    below_known = ""
    for name, module in model.named_modules():
        if below_known and name.startswith(below_known):
            continue
        if _is_known(module):
            known[id(module)] = (name, module)
            below_known = f"{name}."
        elif _is_attention(module):
            unknown[full_name(type(module))].append(name)
    if unknown:
        raise PlanError(_unknown(unknown))
    if not known:
        raise PlanError("the model has no attention that is known here")
    if "" in (name for name, _ in known.values()):
        raise PlanError("the model is itself attention: convert the module that holds it")
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if id(child) in known:
                places[id(child)].append((parent, attribute))
    return [
        Found(name, module, layout_of(module), tuple(places[key]))
        for key, (name, module) in known.items()
    ]


def _is_known(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention or layout_of(module) is not None


def _is_attention(module: nn.Module) -> bool:
    """Whether a module of an unknown class is attention, and does not only hold such."""
    if has_projections({*module._modules, *module._parameters}):
        return True
    return _sounds_like_attention(module) and not any(
        _is_known(part) or _is_attention(part) for part in module.modules() if part is not module
    )


def _sounds_like_attention(module: nn.Module) -> bool:
    return ATTENTION_NAME.search(type(module).__name__) is not None


def _unknown(unknown: dict[str, list[str]]) -> str:
    if all(kind.startswith("nas_attn.") for kind in unknown):
        return (
            "the model has attention of nas-attn already: convert the model as it was before, or "
            "single modules by convert_attention"
        )
    kinds = []
    for kind, names in unknown.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        kinds.append(f"{kind} ({names[0] or 'the model itself'}{more})")
    return (
        f"not known here is {', '.join(kinds)}: it may take or compute more than multi-head "
        "attention does. Nothing was converted. Known are torch.nn.MultiheadAttention and the "
        "classes in nas_attn.conversion.table, where an adapter is an entry that says what its "
        "projections, heads, mask and cache are called; a part of the model that has no other "
        "attention can be converted by itself, convert_model(model.part, plan)"
    )


def _refuse_wrappers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            advice = WRAPPERS.get(full_name(kind))
            if advice is not None:
                raise PlanError(f"{name or 'the model'} is a {full_name(kind)}: {advice}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise PlanError(f"{name or 'the model'} was compiled: compile it after the conversion")


def adopt(model: nn.Module, found: Sequence[Found]) -> list[Slot]:
    """Multi-head attention of ours with the weights of known modules, ready to be put.

    Raises:
        PlanError: a module cannot be taken over as it is.
    """
    holders: Counter[int] = Counter()
    for module in model.modules():
        holders.update(map(id, (*module._modules.values(), *module._parameters.values())))
    slots = []
    for one in found:
        try:
            _refuse(one, holders)
            with torch.device("cpu"):  # whatever the default is, probes are computed there
                slots.append(_adopt(one))
        except PlanError as error:
            raise PlanError(f"{one.label}: {error}") from None
    return slots


def _refuse(found: Found, holders: Counter[int]) -> None:
    """Refuse what a known class does not do by itself, but may have been made to do."""
    module, layout, linears = found.module, found.layout, found.linears()
    for path, linear in linears.items():
        kind = full_name(type(linear))
        if kind not in LINEARS:
            raise PlanError(
                f"its {path} is {kind}, not torch.nn.Linear: merge adapters, undo quantisation or "
                "parametrisation first"
            )
    for part in (module, *linears.values()):
        if "forward" in vars(part):
            raise PlanError("its forward was replaced, and what replaced it would be lost")
        if any(map(_is_foreign, _hooks(part))):
            raise PlanError(
                "it has hooks that would be lost: remove them (pruning by its `remove`), and "
                "register them anew after the conversion"
            )
    weights = dict(module.named_parameters())
    for parameter in (*weights.values(), *(p for m in linears.values() for p in m.parameters())):
        if holders[id(parameter)] > 1:
            raise PlanError("another module shares its weights, which conversion would part")
        if parameter.is_meta:
            raise PlanError("its weights are on the meta device: load them first")
    if any(holders[id(linear)] > 1 for linear in linears.values()):
        raise PlanError("another module shares its projections, which conversion would part")
    if layout is not None:
        _refuse_hugging_face(found, layout, weights)


def _refuse_hugging_face(found: Found, layout: Layout, weights: dict[str, Any]) -> None:
    module = found.module
    more = set(argument_names(type(module))[1:]) - ARGUMENTS - layout.arguments
    if more:
        raise PlanError(f"its forward takes {', '.join(sorted(more))}, which is not known here")
    parts = (*layout.own_projections, *layout.kept)
    known = {f"{path}.{kind}" for path in parts for kind in ("weight", "bias")}
    known_not = sorted({*weights, *(name for name, _ in module.named_buffers())} - known)
    if known_not:
        raise PlanError(f"it has {', '.join(known_not)}, which multi-head attention has not")
    if len(found.places) > 1 and layout.output_outside:
        raise PlanError("several modules share it, each with an output projection of its own")
    how = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if how not in (None, "eager", "sdpa"):
        raise PlanError(
            f"it computes attention by {how}: load the model with attn_implementation='sdpa'"
        )


def _hooks(module: nn.Module) -> Iterator[Any]:
    for name in HOOKS:
        yield from getattr(module, name).values()


def _is_foreign(hook: Any) -> bool:
    """Whether it is not one of those by which transformers records outputs."""
    return getattr(hook, "__module__", None) != "transformers.utils.output_capturing"


def _adopt(found: Found) -> Slot:
    module: Any = found.module
    if found.layout is None:
        attention = _of_torch(module)
        slot = Slot(found, attention, TimeFirst if not module.batch_first else lambda made: made)
        check(slot, torch_probes(module))
    else:
        layout = found.layout
        dropouts = [getattr(module, name, None) for name in layout.dropout]
        dropout = next((d for d in dropouts if d is not None), 0.0)
        attention = _multi_head(
            _parts(found),
            getattr(module, layout.heads),
            float(getattr(dropout, "p", dropout)),
            scale=getattr(module, layout.scale) if layout.scale else None,
        )
        slot = Slot(found, attention, hidden_states_for(module, layout))
        check(slot, hidden_states_probes(found, attention))
    attention.train(module.training)
    return slot


def _parts(found: Found) -> list[tuple[Tensor, Tensor | None]]:
    """Weights and biases of queries, keys, values and the output, those of one module parted."""
    assert found.layout is not None
    paths, linears = found.layout.projections, found.linears()
    parts = []
    for place, path in enumerate(paths):
        linear, count = linears[path], paths.count(path)
        weight = linear.weight.t() if LINEARS[full_name(type(linear))] else linear.weight
        if len(weight) % count:
            raise PlanError(f"its {path} is not {count} projections of one width")
        which = paths[:place].count(path)
        bias = None if linear.bias is None else linear.bias.chunk(count)[which]
        parts.append((weight.chunk(count)[which], bias))
    return parts


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


def _multi_head(
    parts: Sequence[tuple[Tensor, Tensor | None]],
    num_heads: int,
    dropout: float,
    *,
    scale: float | None = None,
) -> Attention:
    """Multi-head attention of ours; a factor of scores that is not the usual goes to queries."""
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
            if not all(t.isfinite().all() for t in (weight, bias) if t is not None):
                raise PlanError("weights are not finite")
            projection.weight.copy_(weight)
            if projection.bias is not None:
                projection.bias.zero_() if bias is None else projection.bias.copy_(bias)
        if scale is not None and scale != module.scale:
            for parameter in module.q_proj.parameters():
                parameter.mul_(scale / module.scale)
    return module
