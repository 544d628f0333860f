"""Plans next to a predicted point: what a sum may have missed is looked for there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from nas_attn.engine.sensitivity import AdditiveModel, Prediction
from nas_attn.measures import NO_LIMITS


def swaps(
    model: AdditiveModel,
    point: Prediction,
    count: int,
    *,
    max_schemes: int | None = None,
    keep_first_layer: bool = False,
    limits: Mapping[str, float] = NO_LIMITS,
) -> list[Prediction]:
    """Plans that differ from a point in one or two units and cost no more.

    Args:
        model: What single changes predict.
        point: Point of the predicted front.
        count: Number of plans at most, those first that are predicted to lose least.
        max_schemes: Number of schemes that a plan may have; any number if None.
        keep_first_layer: The first layer of each site stays as it is.
        limits: The most that plans may cost, by the names of some of the further costs.
    """
    now = model.chosen(point.plan)
    if now is None:
        return []
    moves = []
    for unit, (table, place) in enumerate(zip(model.tables, now, strict=True)):
        here = table[place].option
        is_kept = keep_first_layer and model.space.units[unit].layer == 0
        for other, entry in table.items():
            if other != place and not (is_kept and entry.is_change):
                cost, loss = entry.option.cost - here.cost, entry.option.loss - here.loss
                moves.append(_Move(cost, loss, {unit: other}))
    pairs = (_together(*pair) for pair in itertools.combinations(moves, 2))
    found = [move for move in (*moves, *pairs) if move is not None and move.cost <= 0]
    chosen: list[Prediction] = []
    for move in sorted(found, key=lambda move: move.loss):
        if len(chosen) == count:
            break
        picked = [move.places.get(unit, place) for unit, place in enumerate(now)]
        made = model.prediction(picked)
        if _is_within(made, model, max_schemes, limits):
            chosen.append(made)
    return chosen


@dataclass(frozen=True)
class _Move:
    """Other alternatives of some units, and what they add to cost and loss."""

    cost: int
    loss: int
    places: Mapping[int, int]


def _together(first: _Move, second: _Move) -> _Move | None:
    """Two moves as one; None if both are of one unit."""
    if first.places.keys() & second.places.keys():
        return None
    places = {**first.places, **second.places}
    return _Move(first.cost + second.cost, first.loss + second.loss, places)


def _is_within(
    made: Prediction, model: AdditiveModel, max_schemes: int | None, limits: Mapping[str, float]
) -> bool:
    known = dict(zip(model.others, made.others, strict=True))
    if made.plan.source_fault() or any(known[name] > most for name, most in limits.items()):
        return False
    schemes = {choice.scheme for _, choices in made.plan for choice in choices}
    return max_schemes is None or len(schemes) <= max_schemes
