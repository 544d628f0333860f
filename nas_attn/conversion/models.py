"""Conversion of whole PyTorch models: torch's own attention and Hugging Face's.

`nas_attn.conversion.table` says which classes are known; transformers itself is not imported.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import nn

from nas_attn.attention import Attention
from nas_attn.conversion.adoption import adopt, find
from nas_attn.conversion.convert import Errors, build_like, convert_attention
from nas_attn.conversion.metric import RecordedCall, recorded
from nas_attn.conversion.probes import is_close
from nas_attn.conversion.rotary import convert_rotary
from nas_attn.conversion.slots import Found, Slot
from nas_attn.conversion.votes import settled_choice
from nas_attn.conversion.wrappers import argument_names, without_cache
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConvertedModule:
    """What became of one attention module.

    Args:
        name: Name in the model, such as `encoder.layer.0.attention.self`.
        choice: Scheme and options that it was converted to; those that a vote on the data left.
        errors: Errors on the calibration data; None without them.
    """

    name: str
    choice: AttentionChoice
    errors: Errors | None


def convert_model(
    model: nn.Module,
    plan: AttentionPlan,
    run: Callable[[nn.Module], object] | None = None,
    *,
    refit: bool = True,
    force: bool = False,
) -> list[ConvertedModule]:
    """Replace the attention of a model, in place, by what a plan says; all of it or nothing.

    Attention to an encoder (`multihead_attn` of torch's decoder layers) is encoder_decoder, else
    what is causal or has `decoder` in its name is decoder_self and all other encoder_self; layers
    are counted in the order of the model, a module that is used in several places as one.
    Sites that the plan leaves out become multi_head.

    Only classes that `nas_attn.conversion.table` lists are taken over, and each module is first
    compared on a probe (with `run`, also on its data) with attention of ours that has its weights.

    Give `run` wherever a scheme has less room than the heads fill: by weights alone collaborative
    attention is no better than truncated singular values of the two matrices.

    Models of transformers generate with their own cache afterwards, which holds shared heads once.
    `save_pretrained` is refused, for `from_pretrained` would build the attention of before, with
    random weights: use `save_converted` and `load_converted`.

    Args:
        model: Trained model; changed.
        plan: Scheme and options for each site and layer.
        run: Function that runs a model on calibration data (`lambda m: m(**batch)`).
        refit: Whether to solve output projections anew where there are data.
        force: Whether to convert also to schemes that cannot inherit.

    Returns:
        What was converted, in the order of the model; votes on heads (`keep`) are held with `run`.

    Raises:
        PlanError: there is no attention, some is not known, is shared, quantised, adapted or else
            not as its class makes it, or the plan does not fit. The model is as it was.
    """
    found = find(model)
    choices = _choices(found, plan)
    slots = adopt(model, found)
    if run is None:
        widths = [slot.attention.embed_dim for slot in slots]
        warn_without_data(zip(choices, widths, strict=True))
    calls = {} if run is None else _calls(model, slots, run)
    converted = [
        _convert(slot, choice, calls.get(slot.found.name, ()), number, refit=refit, force=force)
        for number, (slot, choice) in enumerate(zip(slots, choices, strict=True))
    ]
    for slot in slots:
        slot.put()
    _settle(model, found, [module.choice for module in converted])
    return converted


def take_shape(model: nn.Module, plan: AttentionPlan) -> None:
    """Replace the attention of a model, in place, by new modules that await their weights.

    Args:
        model: Model of any weights; changed.
        plan: Scheme and options for each site and layer.

    Raises:
        PlanError: As `convert_model` says.
    """
    found = find(model)
    choices = _choices(found, plan)
    slots = adopt(model, found)
    for slot, choice in zip(slots, choices, strict=True):
        training, weight = slot.attention.training, next(slot.attention.parameters())
        if choice.scheme != "multi_head":  # which is attention as it was
            slot.attention = build_like(slot.attention, choice).to(weight).train(training)
    for slot in slots:
        slot.put()
    _settle(model, found, choices)


PLAN = "_nas_attn_plan"
"""Attribute of converted models with their plan."""


def _settle(model: nn.Module, found: Sequence[Found], choices: Sequence[AttentionChoice]) -> None:
    """Have a model know its plan, and do without what needs the attention that it had."""
    sites: dict[str, list[AttentionChoice]] = {}
    for one, choice in zip(found, choices, strict=True):
        sites.setdefault(one.site, []).append(choice)
    setattr(model, PLAN, AttentionPlan.of(sites))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which needs torch's own fused weights
        if hasattr(module, "save_pretrained"):
            setattr(module, "save_pretrained", _refuse_to_save)  # noqa: B010  hides the method


Make = Callable[[str, Attention, AttentionChoice, Sequence[RecordedCall]], Attention]
"""Converts a module, given its name in the model, itself, the choice and its recorded calls."""


def _make(
    _: str, trained: Attention, choice: AttentionChoice, calls: Sequence[RecordedCall]
) -> Attention:
    return convert_attention(trained, choice, calls).module


class Conversions:
    """A model that is converted to plan after plan: each module to each choice only once.

    Args:
        model: Trained model; a copy of it is converted.
        run: Function that runs a model on calibration data (see `convert_model`).

    Raises:
        PlanError: As `convert_model` says.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], object] | None = None) -> None:
        self.model = copy.deepcopy(model)
        self._found = find(self.model)
        self._slots = adopt(self.model, self._found)
        self._trained = [slot.attention for slot in self._slots]
        calls = {} if run is None else _calls(self.model, self._slots, run)
        self._calls = [calls.get(slot.found.name, ()) for slot in self._slots]
        self._made: dict[tuple[int, AttentionChoice], Attention] = {}
        self._make: Make = _make
        for slot in self._slots:
            slot.put()
        _settle(self.model, self._found, [AttentionChoice.of("multi_head")] * len(self._found))

    @property
    def attention(self) -> dict[str, Attention]:
        """The trained attention, multi-head attention of ours, by name in the model."""
        return {f.name: a for f, a in zip(self._found, self._trained, strict=True)}

    @property
    def sites(self) -> dict[str, str]:
        """Where it acts, by name in the model."""
        return {found.name: found.site for found in self._found}

    @property
    def calls(self) -> dict[str, Sequence[RecordedCall]]:
        """What it was called with on the calibration data, by name in the model."""
        return {f.name: calls for f, calls in zip(self._found, self._calls, strict=True)}

    def use(self, make: Make) -> None:
        """Have modules converted in another way from here on, such as with a training of each."""
        self._make = make
        self._made.clear()

    def changed(self, plan: AttentionPlan) -> dict[str, AttentionChoice]:
        """What a plan makes of the modules that it does not leave as they are, by name.

        Raises:
            PlanError: The plan names a site that the model lacks.
        """
        pairs = zip(self._found, _choices(self._found, plan), strict=True)
        return {f.name: choice for f, choice in pairs if choice.scheme != "multi_head"}

    def module(self, name: str, choice: AttentionChoice) -> Attention:
        """One module, converted; it is made once.

        Raises:
            PlanError: The choice does not fit, or its scheme cannot inherit.
        """
        numbers = [f.name for f in self._found]
        return self._attention(numbers.index(name), choice)

    @property
    def shapes(self) -> dict[str, SiteShape]:
        """The sizes of the model's sites.

        Raises:
            PlanError: Attention of one site has several sizes.
        """
        shapes: dict[str, SiteShape] = {}
        for found, attention in zip(self._found, self._trained, strict=True):
            site = found.site
            heads = attention.embed_dim // attention.head_dim
            before = shapes.get(site)
            layers = 1 if before is None else before.num_layers + 1
            kdim = None if attention.kdim == attention.embed_dim else attention.kdim
            shapes[site] = SiteShape(
                num_layers=layers, embed_dim=attention.embed_dim, num_heads=heads, kdim=kdim
            )
            if before is not None and replace(before, num_layers=layers) != shapes[site]:
                raise PlanError(f"{found.label}: its sizes are not those of others at {site}")
        return shapes

    def convert(self, plan: AttentionPlan) -> nn.Module:
        """The model by a plan, until the next one; sites that it leaves out are multi_head.

        Raises:
            PlanError: The plan does not fit, or a scheme cannot inherit.
        """
        choices = _choices(self._found, plan)
        for number, choice in enumerate(choices):
            slot, attention = self._slots[number], self._attention(number, choice)
            if slot.attention is not attention:
                slot.attention = attention
                slot.put()
        _settle(self.model, self._found, choices)
        return self.model

    def _attention(self, number: int, choice: AttentionChoice) -> Attention:
        if choice.scheme == "multi_head":
            return self._trained[number]
        if (number, choice) not in self._made:
            found, trained = self._found[number], self._trained[number]
            try:
                _refuse_bias(self._slots[number], choice)
                if self._slots[number].is_rotary:
                    made = convert_rotary(trained, choice, self._calls[number]).module
                else:
                    made = self._make(found.name, trained, choice, self._calls[number])
            except PlanError as error:
                raise PlanError(f"{found.label}: {error}") from None
            self._made[number, choice] = made
        return self._made[number, choice]


def _refuse_bias(slot: Slot, choice: AttentionChoice) -> None:
    """Refuse what cannot have a position bias for each head of the original.

    Raises:
        PlanError: The module has one and the choice cannot.
    """
    layout = slot.found.layout
    if layout is None or not layout.position_bias or slot.found.site == "encoder_decoder":
        return
    options = dict(choice.options)
    prunes = "kept_heads" in options or options.get("keep", "all") != "all"
    if choice.scheme == "single_head" or prunes:
        raise PlanError(
            f"{choice.scheme} has fewer attention maps than its position bias has heads"
        )


def _convert(
    slot: Slot,
    choice: AttentionChoice,
    calls: Sequence[RecordedCall],
    number: int,
    *,
    refit: bool,
    force: bool,
) -> ConvertedModule:
    """Convert what a slot holds.

    Raises:
        PlanError: the choice does not fit; the message names the module.
    """
    if choice.scheme == "multi_head":  # the slot holds it already, to the last bit
        errors = Errors(scores=0.0, outputs=0.0) if calls else None
    else:
        try:
            _refuse_bias(slot, choice)
            choice = settled_choice(slot.attention, choice, calls, seed=number)
            if slot.is_rotary:
                made = convert_rotary(slot.attention, choice, calls)
            else:
                made = convert_attention(slot.attention, choice, calls, refit=refit, force=force)
        except PlanError as error:
            raise PlanError(f"{slot.found.label}: {error}") from None
        slot.attention, errors = made.module, made.errors
    return ConvertedModule(name=slot.found.name, choice=choice, errors=errors)


def warn_without_data(choices: Iterable[tuple[AttentionChoice, int]]) -> None:
    """Say that collaborative attention wants calibration data, unless it has room for all.

    Args:
        choices: Choices that are made, each with its `embed_dim`.
    """
    narrow = [
        choice
        for choice, width in choices
        if choice.scheme == "collaborative" and _shared_dim(choice, width) < width
    ]
    if narrow:
        logger.warning(
            "collaborative attention of %s by weights alone is no better than truncated singular "
            "values of the two matrices: calibrate on data such as the model is for",
            "1 module" if len(narrow) == 1 else f"{len(narrow)} modules",
        )


def _shared_dim(choice: AttentionChoice, width: int) -> int:
    given = dict(choice.options).get("shared_dim")
    return given if isinstance(given, int) else width // 4


def _choices(found: Sequence[Found], plan: AttentionPlan) -> list[AttentionChoice]:
    """What each module becomes."""
    sites = [one.site for one in found]
    foreign = [site for site, _ in plan if site not in sites]
    if foreign:
        raise PlanError(f"the plan names {', '.join(foreign)}, which this model lacks")
    plan.check_source()
    counts = {site: sites.count(site) for site in dict.fromkeys(sites)}
    default = AttentionPlan.uniform(AttentionChoice.of("multi_head"), tuple(counts))
    layers = {s: iter(plan.over(default).layers(s, count)) for s, count in counts.items()}
    return [next(layers[site]) for site in sites]


def _calls(
    model: nn.Module, slots: Sequence[Slot], run: Callable[[nn.Module], object]
) -> dict[str, list[RecordedCall]]:
    """Run the model as it is, ours beside its own; what each module was called with.

    Raises:
        PlanError: ours computes something else, or does not take what the model passes.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    attention = {slot.found.name: slot.attention.eval() for slot in slots}
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # which calls no module
        with torch.no_grad(), recorded(attention) as calls, _compared(slots) as faults:
            run(model.eval())
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode
        for slot in slots:
            slot.attention.train(slot.found.module.training)
    if faults:
        raise PlanError(faults[0])
    return {name: [call.with_padding() for call in made] for name, made in calls.items()}


@contextmanager
def _compared(slots: Sequence[Slot]) -> Iterator[list[str]]:
    """While a model runs, call ours as its own are called; yields what is wrong, as it comes."""
    faults: list[str] = []
    handles = []
    for slot in slots:

        def compare(_: nn.Module, given: Any, named: Any, result: Any, slot: Slot = slot) -> None:
            try:
                tokens = given[0] if given else named[argument_names(type(slot.found.module))[0]]
                named = without_cache(slot.found.module, named, tokens.size(1))
                got = slot.wrap(slot.attention)(*given, **named)
            except NotImplementedError as error:
                faults.append(f"{slot.found.label}: {error}")
                return
            got = got[0] if isinstance(got, tuple) else got
            if not is_close(slot.output_of(result), got):
                faults.append(f"{slot.found.label}: ours computes something else on the data")

        handles.append(slot.found.module.register_forward_hook(compare, with_kwargs=True))
    try:
        yield faults
    finally:
        for handle in handles:
            handle.remove()


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    """In the place of `save_pretrained` of converted models."""
    raise NotImplementedError(
        "from_pretrained would build the attention of before the conversion, with random weights: "
        "use nas_attn.save_converted(model, FOLDER) and nas_attn.load_converted(FOLDER)"
    )
