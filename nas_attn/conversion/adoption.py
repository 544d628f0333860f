"""Find the attention of a model, and make attention of ours that computes the same.

Nothing here changes the model but `Slot.put`, which cannot fail.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, MultiHeadAttention
from nas_attn.conversion.table import (
    ARGUMENTS,
    HUGGING_FACE,
    WRAPPERS,
    Layout,
    has_projections,
)
from nas_attn.conversion.wrappers import TimeFirst, argument_names, hidden_states_for
from nas_attn.errors import PlanError

ATTENTION_NAME = re.compile(r"(?i:attention|attn)|MHS?A|MLA")
"""In the name of a class: it is attention, or holds it."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

LINEARS = ("torch.nn.modules.linear.Linear",)
TORCH_LINEARS = (*LINEARS, "torch.nn.modules.linear.NonDynamicallyQuantizableLinear")


@dataclass(frozen=True)
class Found:
    """An attention module of a known class.

    Args:
        name: Name in the model; the first, if it is used in several places.
        module: Module as it is.
        layout: Names of its parts; None for torch's own.
        places: The modules that hold it, and under which attribute.
    """

    name: str
    module: nn.Module
    layout: Layout | None
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def label(self) -> str:
        """Name and class, for errors."""
        return f"{self.name} ({full_name(type(self.module))})"

    def linears(self) -> dict[str, Any]:
        """Modules with weights of the attention, by their names."""
        if self.layout is None:
            return {"out_proj": getattr(self.module, "out_proj", None)}
        linears = {}
        for path in self.layout.projections:
            outside = self.layout.output_outside and path == self.layout.projections[3]
            holder: Any = self.places[0][0] if outside else self.module
            for part in path.split("."):
                holder = getattr(holder, part, None)
            linears[path] = holder
        return linears


@dataclass
class Slot:
    """What stands ready to take the place of an attention module.

    Args:
        found: The module.
        attention: Multi-head attention of ours with its weights, then what that is converted to.
        wrap: Function that puts attention behind the module's call.
    """

    found: Found
    attention: Attention
    wrap: Callable[[Attention], nn.Module]

    def output_of(self, result: Any) -> Tensor:
        """The attention's output, of what the original returned."""
        output: Tensor = result[0] if isinstance(result, tuple) else result
        layout = self.found.layout
        if layout is not None and layout.output_outside:
            output = self.found.linears()[layout.projections[3]](output)
        return output

    def put(self) -> None:
        """Replace the module, wherever it is used."""
        trains = any(p.requires_grad for p in self.found.module.parameters())
        replacement = self.wrap(self.attention.requires_grad_(trains))
        replacement.train(self.found.module.training)
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs"):
            # Of transformers only (others were refused); they record what modules return.
            setattr(replacement, name, getattr(self.found.module, name))
        for parent, attribute in self.found.places:
            put(parent, attribute, self.found.layout, replacement)


def put(parent: nn.Module, attribute: str, layout: Layout | None, replacement: nn.Module) -> None:
    """Replace one attention module of a parent, and its output projection if that is outside."""
    setattr(parent, attribute, replacement)
    if layout is not None and layout.output_outside:
        holder, _, last = layout.projections[3].rpartition(".")
        setattr(parent.get_submodule(holder), last, nn.Identity())


def site_of(name: str) -> str:
    """Where attention of a name acts, as far as names tell."""
    if name.rpartition(".")[2] == "multihead_attn":
        return "encoder_decoder"
    return "decoder_self" if "decoder" in name else "encoder_self"


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


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
        Found(name, module, HUGGING_FACE.get(full_name(type(module))), tuple(places[key]))
        for key, (name, module) in known.items()
    ]


def _is_known(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention or full_name(type(module)) in HUGGING_FACE


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
        "classes in nas_attn.conversion.table; a part of the model that has no other attention can "
        "be converted by itself, convert_model(model.part, plan)"
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
        if kind not in (TORCH_LINEARS if layout is None else LINEARS):
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
    if getattr(module, "is_causal", False) or getattr(module, "is_decoder", False):
        raise PlanError("it is a decoder's, and converted attention keeps no keys and values")
    more = set(argument_names(type(module))) - ARGUMENTS
    if more:
        raise PlanError(f"its forward takes {', '.join(sorted(more))}, which is not known here")
    known = {f"{path}.{kind}" for path in layout.own_projections for kind in ("weight", "bias")}
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
        _check(slot, _torch_probes(module))
    else:
        linears = found.linears().values()
        dropouts = [getattr(module, name, None) for name in found.layout.dropout]
        dropout = next((d for d in dropouts if d is not None), 0.0)
        attention = _multi_head(
            [(linear.weight, linear.bias) for linear in linears],
            getattr(module, found.layout.heads),
            float(getattr(dropout, "p", dropout)),
        )
        slot = Slot(found, attention, hidden_states_for(module))
        _check(slot, _hidden_states_probes(attention.embed_dim))
    attention.train(module.training)
    return slot


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
            if not all(t.isfinite().all() for t in (weight, bias) if t is not None):
                raise PlanError("weights are not finite")
            projection.weight.copy_(weight)
            if projection.bias is not None:
                projection.bias.zero_() if bias is None else projection.bias.copy_(bias)
    return module


Probe = tuple[tuple[Tensor, ...], dict[str, Tensor]]
"""Arguments of a call, by position and by name."""


def _torch_probes(module: Any) -> list[Probe]:
    make = torch.Generator().manual_seed(0)
    shape = (2, 5) if module.batch_first else (5, 2)
    query, key, value = (
        torch.randn(*shape, width, dtype=torch.float64, generator=make)
        for width in (module.embed_dim, module.kdim, module.vdim)
    )
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given = (query, key, value)
    return [(given, {}), (given, {"key_padding_mask": padding}), (given, {"attn_mask": later})]


def _hidden_states_probes(width: int) -> list[Probe]:
    make = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, width, dtype=torch.float64, generator=make)
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[1, ..., 3:] = torch.finfo(torch.float64).min
    return [((states,), {}), ((states,), {"attention_mask": mask})]


@torch.no_grad()
def _check(slot: Slot, probes: Sequence[Probe]) -> None:
    """Compare a copy of the module, or of what holds it, with and without ours in its place."""
    found = slot.found
    parent, attribute = found.places[0]
    outside = found.layout is not None and found.layout.output_outside
    before = copy.deepcopy(parent if outside else found.module).to("cpu", torch.float64).eval()
    after = slot.wrap(copy.deepcopy(slot.attention).to("cpu", torch.float64)).eval()
    if outside:
        ours, after = after, copy.deepcopy(before)
        put(after, attribute, found.layout, ours)
    for given, masks in probes:
        try:
            results = [module(*given, **masks) for module in (before, after)]
        except Exception as error:
            raise PlanError(f"it does not take a probe ({type(error).__name__}: {error})") from None
        wanted, got = (r[0] if isinstance(r, tuple) else r for r in results)
        if not is_close(wanted, got):
            how = f"under {', '.join(masks)}" if masks else "without a mask"
            raise PlanError(
                f"{how} it computes something else than multi-head attention with its weights"
            )


def is_close(wanted: Tensor, found: Tensor) -> bool:
    """Whether two results are one to rounding, for their type; of float64, to that of float32, in
    which some models compute the softmax whatever their type is. Where the wanted one is no number,
    as torch's is of queries that see no key, there is nothing to compare."""
    if wanted.shape != found.shape:
        return False
    share = min(max(1000.0 * torch.finfo(wanted.dtype).eps, 1e-5), 0.05)
    is_number = wanted.isfinite()
    wanted, found = wanted[is_number].double(), found[is_number].double()
    if not len(wanted):
        return True
    size = wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return bool((wanted - found).abs().max() <= share * size)
