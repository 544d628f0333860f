"""Learning curves in place of trainings, recorded or made up, and the faults that are drawn.

A simulated executor asks `curve_of` and `drawn_fault` and needs no process at all.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from nas_attn.config_model import ConfigModel, Count, FilePath
from nas_attn.curves import Curve, Point, recorded_curves
from nas_attn.errors import DataError, NasAttnError

FaultName = Literal["out_of_memory", "killed", "not_finite", "hung", "disk_full", "training_error"]

REFERENCE_PARAMETERS = 300_000
LOSS_FLOOR = 2.0
SIZE_COST = 1.0
SIZE_POWER = 0.3
EARLY_LOSS = 2.0
"""How far a model of the reference size lies above its final loss when a quarter is done."""
SITE_COST = 0.1
"""The final loss that the worst choice adds at a site; the best adds nothing."""
INTERACTION_COST = 0.02

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ReplayConfig(ConfigModel):
    """Replayed learning curves instead of trainings."""

    curves: FilePath | None = None
    """CSV file of recorded learning curves; left out, curves are made up."""
    validations: Count = 9
    """Validations of a made-up curve."""
    updates_per_validation: Count = 100
    """Updates between two validations of a made-up curve."""
    seconds: NonNegative = 1.0
    """Seconds that a whole training takes, also a recorded one."""
    noise: NonNegative = 0.02
    """Standard deviation of a made-up curve's final loss over the seeds."""
    faults: dict[FaultName, Probability] = Field(default_factory=dict)
    """Probability of each fault, per attempt at a training."""

    @model_validator(mode="after")
    def _at_most_one_fault(self) -> ReplayConfig:
        total = round(math.fsum(self.faults.values()), 9)
        if total > 1:
            raise ValueError(f"the probabilities of faults must sum to at most 1, not {total}")
        return self


def curve_of(config: ReplayConfig, plan_text: str, parameters: int, seed: int) -> Curve:
    """The curve of one training; a recorded one keeps the seconds that were recorded.

    Raises:
        DataError: the file of recorded curves is refused.
        NasAttnError: it does not hold this training.
    """
    if config.curves is None:
        return synthetic_curve(config, plan_text, parameters, seed)
    curves = _curves_as_of(config.curves, _modified(config.curves))
    curve = curves.get((plan_text, seed))
    if curve is None:
        seeds = sorted(known for text, known in curves if text == plan_text)
        held = f"only of seeds {', '.join(map(str, seeds))}" if seeds else "of no seed"
        raise NasAttnError(
            f"{config.curves} holds no curve of seed {seed}, {held}, for plan {plan_text}"
        )
    return curve


def synthetic_curve(config: ReplayConfig, plan_text: str, parameters: int, seed: int) -> Curve:
    """A made-up curve: a power law that ends at the training's final loss.

    Smaller models learn faster but end higher, so curves of different sizes cross.
    """
    size = (parameters / REFERENCE_PARAMETERS) ** SIZE_POWER
    final = LOSS_FLOOR + SIZE_COST / size + _plan_cost(plan_text)
    final += config.noise * _gaussian(f"seed {seed} {plan_text}")
    points = []
    for number in range(1, config.validations + 1):
        done = number / config.validations
        loss = final + EARLY_LOSS * size * (done**-0.5 - 1)
        points.append(Point(number * config.updates_per_validation, loss, done * config.seconds))
    return Curve(tuple(points))


def drawn_fault(config: ReplayConfig, plan_text: str, seed: int, attempt: int) -> FaultName | None:
    """What goes wrong in an attempt (the first is 1) at a training, if anything."""
    draw = _unit(f"fault {attempt} {seed} {plan_text}")
    for fault in get_args(FaultName):
        draw -= config.faults.get(fault, 0.0)
        if draw < 0:
            name: FaultName = fault
            return name
    return None


def validations_before_fault(done: int, validations: int) -> int:
    """How many validations a training has behind it when its fault strikes, while it trains on.

    Args:
        done: Number of validations that it had saved when the attempt began.
        validations: Number of validations of the whole training.
    """
    return (done + validations) // 2


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"recorded curves {path} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=4)
def _curves_as_of(path: Path, _modified: int) -> dict[tuple[str, int], Curve]:
    return recorded_curves(path)


def _plan_cost(plan_text: str) -> float:
    """What the choices add to the final loss: nearly a sum over sites and layers."""
    total = INTERACTION_COST * _unit(f"interaction {plan_text}")
    for site, given in json.loads(plan_text).items():
        choices = given if isinstance(given, list) else [given]
        weights = [0.5 + _unit(f"layer {site} {layer}") for layer in range(len(choices))]
        costs = [_unit(f"choice {site} {choice}") for choice in choices]
        weighted = sum(weight * cost for weight, cost in zip(weights, costs, strict=True))
        total += SITE_COST * weighted / sum(weights)
    return total


def _gaussian(text: str) -> float:
    """A standard normal number that depends on the text alone (Box and Muller 1958)."""
    radius = math.sqrt(-2 * math.log(1 - _unit(f"radius {text}")))
    return radius * math.cos(2 * math.pi * _unit(f"angle {text}"))


@lru_cache(maxsize=4096)
def _unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
