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
from nas_attn.conversion.adoption import Found, Slot, adopt, find, is_close, site_of
from nas_attn.conversion.convert import Errors, convert_attention
from nas_attn.conversion.metric import RecordedCall, recorded
from nas_attn.conversion.votes import settled_choice
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

    Sites follow from names: attention to an encoder (`multihead_attn` of torch's decoder layers) is
    encoder_decoder, else what has `decoder` in its name is decoder_self and all other encoder_self;
    layers are counted in the order of the model, a module that is used in several places as one.
    Sites that the plan leaves out become multi_head.

    Only classes that `nas_attn.conversion.table` lists are taken over, and each module is first
    compared on a probe (with `run`, also on its data) with attention of ours that has its weights.

    Give `run` wherever a scheme has less room than the heads fill: by weights alone collaborative
    attention is no better than truncated singular values of the two matrices.

    `save_pretrained` is refused afterwards, for `from_pretrained` would build the attention of
    before, with random weights. Keep `model.state_dict()` and `plan.dumps()`; to load, build the
    model, convert it by the same plan, and `load_state_dict`.

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
    _settle(model)
    return converted


def _settle(model: nn.Module) -> None:
    """Have a model do without what needs the attention that it had."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which needs torch's own fused weights
        if hasattr(module, "save_pretrained"):
            setattr(module, "save_pretrained", _refuse_to_save)  # noqa: B010  hides the method


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
        for slot in self._slots:
            slot.put()
        _settle(self.model)

    @property
    def shapes(self) -> dict[str, SiteShape]:
        """The sizes of the model's sites.

        Raises:
            PlanError: Attention of one site has several sizes.
        """
        shapes: dict[str, SiteShape] = {}
        for found, attention in zip(self._found, self._trained, strict=True):
            site = site_of(found.name)
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
        for number, choice in enumerate(_choices(self._found, plan)):
            slot, attention = self._slots[number], self._attention(number, choice)
            if slot.attention is not attention:
                slot.attention = attention
                slot.put()
        return self.model

    def _attention(self, number: int, choice: AttentionChoice) -> Attention:
        if choice.scheme == "multi_head":
            return self._trained[number]
        if (number, choice) not in self._made:
            try:
                made = convert_attention(self._trained[number], choice, self._calls[number])
            except PlanError as error:
                raise PlanError(f"{self._found[number].label}: {error}") from None
            self._made[number, choice] = made.module
        return self._made[number, choice]


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
            choice = settled_choice(slot.attention, choice, calls, seed=number)
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
    sites = [site_of(one.name) for one in found]
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
    return calls


@contextmanager
def _compared(slots: Sequence[Slot]) -> Iterator[list[str]]:
    """While a model runs, call ours as its own are called; yields what is wrong, as it comes."""
    faults: list[str] = []
    handles = []
    for slot in slots:

        def compare(_: nn.Module, given: Any, named: Any, result: Any, slot: Slot = slot) -> None:
            try:
                got, _weights = slot.wrap(slot.attention)(*given, **named)
            except NotImplementedError as error:
                faults.append(f"{slot.found.label}: {error}")
                return
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
        "from_pretrained would build the attention of before the conversion, with random weights. "
        "Save the weights and the plan: torch.save(model.state_dict(), FILE) and plan.dumps(). To "
        "load them, build the model from its configuration, convert it by convert_model(model, "
        "AttentionPlan.parse(TEXT)), then model.load_state_dict(torch.load(FILE))"
    )
