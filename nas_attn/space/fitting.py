"""A space that is offered for many models, without what does not fit one of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nas_attn.plan import NO_ATTENTION, AttentionChoice, SiteShape
from nas_attn.space.config import (
    FractionsOfHeads,
    FractionsOfWidth,
    Schemes,
    SpaceConfig,
    scheme_of,
)

FaultOf = Callable[[AttentionChoice, SiteShape], str | None]
"""Why a choice does not fit a site; None if it does."""


def fitting(
    config: SpaceConfig, shapes: Mapping[str, SiteShape], fault_of: FaultOf
) -> tuple[SpaceConfig, list[str]]:
    """Leave out of a space the values and schemes that do not fit a model.

    A value goes if it fits with no value of the scheme's other options, a scheme if nothing of it
    is left. What cannot be left out so stays, and is found by who builds the space.

    Args:
        config: The space.
        shapes: Sizes of the model's sites.
        fault_of: Function that judges a choice.

    Returns:
        The space, the same if all of it fits, and what was left out, in words.
    """
    sites = list(shapes)
    # Where one choice is made for the whole model, it must fit everywhere.
    groups = [sites] if config.decide == "model" else [[site] for site in sites]
    said: dict[str, list[str]] = {}
    reduced: dict[str, Schemes] = {}
    for group in groups:
        offered = dict(config.sites).get(group[0], config.schemes)  # type: ignore[call-overload]
        kept: Schemes = {}
        for scheme, domains in offered.items():
            if scheme_of(scheme) == NO_ATTENTION and _is_all_of_source(config, group, shapes):
                left, faults = None, [f"{scheme} (the decoder would not see the source)"]
            else:
                left, faults = _left(scheme, domains, [shapes[site] for site in group], fault_of)
            if left is not None:
                kept[scheme] = left
            for fault in faults:
                said.setdefault(fault, []).extend(group)
        reduced |= dict.fromkeys(group, kept)
    if not said or not all(reduced.values()):
        return config, []
    words = [f"{fault}, at {', '.join(at)}" for fault, at in said.items()]
    if all(kept == reduced[sites[0]] for kept in reduced.values()):
        return config.model_copy(update={"schemes": reduced[sites[0]], "sites": {}}), words
    return config.model_copy(update={"sites": reduced}), words


def _is_all_of_source(
    config: SpaceConfig, group: Sequence[str], shapes: Mapping[str, SiteShape]
) -> bool:
    """Whether one choice is made for all layers between decoder and encoder."""
    site = "encoder_decoder"
    return site in group and (config.decide != "layer" or shapes[site].num_layers == 1)


def _left(
    scheme: str, domains: Mapping[str, Any], shapes: Sequence[SiteShape], fault_of: FaultOf
) -> tuple[dict[str, Any] | None, list[str]]:
    """What is left of a scheme's options, None if nothing is, and what was left out."""
    items = {name: _items(domain) for name, domain in domains.items()}
    good: dict[str, set[int]] = {name: set() for name in items}
    bad: dict[tuple[str, int], str] = {}
    fault: str | None = None
    fits_anywhere = False
    for places in itertools.product(*(range(len(values)) for values in items.values())):
        picked = dict(zip(items, places, strict=True))
        fault = next((f for f in _faults(scheme, domains, picked, shapes, fault_of) if f), None)
        for name, place in picked.items():
            if fault is None:
                good[name].add(place)
            else:
                bad.setdefault((name, place), fault)
        fits_anywhere |= fault is None
    if not fits_anywhere:
        return None, [f"{scheme} ({fault})"]
    said = [
        f"{scheme} with {name} {_value_text(domains[name], place)} ({why})"
        for (name, place), why in bad.items()
        if place not in good[name]
    ]
    left = {name: _only(domain, sorted(good[name])) for name, domain in domains.items()}
    return left, said


def _faults(
    scheme: str,
    domains: Mapping[str, Any],
    picked: Mapping[str, int],
    shapes: Sequence[SiteShape],
    fault_of: FaultOf,
) -> Iterator[str | None]:
    for shape in shapes:
        values = {name: _value(domains[name], place, shape) for name, place in picked.items()}
        broken = [name for name, value in values.items() if value is None]
        if broken:
            yield f"{broken[0]} is no whole number"
        else:
            yield fault_of(AttentionChoice.of(scheme_of(scheme), **values), shape)


def _items(domain: Any) -> list[Any]:
    """The values of an option as the file has them."""
    if isinstance(domain, FractionsOfWidth):
        return list(domain.fraction_of_embed_dim)
    if isinstance(domain, FractionsOfHeads):
        return list(domain.fraction_of_num_heads)
    return list(domain)


def _value(domain: Any, place: int, shape: SiteShape) -> Any:
    """A value at a site; None for a fraction that is no whole number there."""
    item = _items(domain)[place]
    if isinstance(domain, FractionsOfWidth):
        item *= shape.embed_dim
    elif isinstance(domain, FractionsOfHeads):
        item *= shape.num_heads
    else:
        return item
    return int(item) if item >= 1 and item == int(item) else None


def _value_text(domain: Any, place: int) -> str:
    item = _items(domain)[place]
    if isinstance(domain, FractionsOfWidth):
        return f"{item} of the embed_dim"
    if isinstance(domain, FractionsOfHeads):
        return f"{item} of the num_heads"
    return str(item)


def _only(domain: Any, places: Sequence[int]) -> Any:
    values = [_items(domain)[place] for place in places]
    if isinstance(domain, FractionsOfWidth):
        return FractionsOfWidth(fraction_of_embed_dim=values)
    if isinstance(domain, FractionsOfHeads):
        return FractionsOfHeads(fraction_of_num_heads=values)
    return values
