"""Scores of a model's conversions by one pass with gradients.

A converted module's outputs differ by e. The loss of an example then changes by g e, with g its
gradient at those outputs, and by half of e H e. H is taken as a multiple of g^T g, which is so on
average where the loss is a negative log-likelihood (the Fisher matrix). The multiple depends on the
loss's unit and on what it is a mean of, so it is had from a few conversions that are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nas_attn.conversion import Conversions
from nas_attn.conversion.felt import feel, told
from nas_attn.engine.sensitivity import Measured
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.workflows.kept_measurements import Score

PROBES = 6
"""Conversions that are measured to learn how much curvature counts."""
LEAST = 0.3
"""Probes are of those conversions that curvature tells to be beyond this quantile."""


def score_changes(
    conversions: Conversions,
    plans: Iterable[AttentionPlan],
    losses: Sequence[Callable[[], Tensor]],
) -> dict[AttentionPlan, Score]:
    """Score conversions without running any converted model.

    Args:
        conversions: The model.
        plans: Plans that it would be converted to.
        losses: For each batch of the data the function that runs the model and gives its losses.

    Raises:
        NasAttnError: The losses have no gradient, or are not one for each example.
        PlanError: A plan does not fit the model, or its scheme cannot inherit.
    """
    keys = {plan: list(conversions.changed(plan).items()) for plan in plans}
    modules = {key: conversions.module(*key) for some in keys.values() for key in some}
    changes: dict[tuple[str, AttentionChoice], list[Tensor]] = {key: [] for key in modules}
    conversions.convert(AttentionPlan.of({}))
    for run in losses:
        felt = feel(conversions.attention, run)
        for (name, choice), module in modules.items():
            changes[name, choice].append(told(felt, name, module))
    whole = {key: torch.cat(some) for key, some in changes.items()}
    found = {}
    for plan, some in keys.items():
        slopes = torch.stack([whole[key] for key in some]).sum(0)
        found[plan] = Score(_mean(slopes), _mean(slopes.square() / 2))
    return found


def _mean(values: Tensor) -> Measured:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Measured(float(values.mean()), error)


def probes_of(scores: Mapping[AttentionPlan, Score]) -> list[AttentionPlan]:
    """Conversions that tell how much curvature counts: some that change little, some much."""
    ranked = sorted(scores, key=lambda plan: scores[plan].curve.change)
    places = np.linspace(LEAST * (len(ranked) - 1), len(ranked) - 1, PROBES)
    return list(dict.fromkeys(ranked[round(place)] for place in places))


def curve_factor(
    scores: Mapping[AttentionPlan, Score], measured: Mapping[AttentionPlan, Measured]
) -> float:
    """The factor of the curvature with which scores come nearest to what was measured.

    Least squares of relative errors; 0 if nothing clear was measured.
    """
    above = below = 0.0
    for plan, score in scores.items():
        seen = measured.get(plan)
        if seen is None or not abs(seen.change) > 2 * (seen.error if seen.error > 0 else 0.0):
            continue
        part = score.curve.change / seen.change
        above += (1.0 - score.slope.change / seen.change) * part
        below += part * part
    return max(0.0, above / below) if below > 0 else 0.0
