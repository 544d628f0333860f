"""Findings of single conversions, made up."""

from __future__ import annotations

from collections.abc import Sequence

from nas_attn.analysis.sensitivity import Outcome, SensitivityFindings
from nas_attn.engine.sensitivity import (
    Measured,
    Prediction,
    PredictionCheck,
    UnitChange,
    validity_of,
)
from nas_attn.plan import AttentionChoice, AttentionPlan

PLAN = AttentionPlan.uniform(AttentionChoice.of("multi_query"))
PREDICTED = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


FRONT = (Prediction(plan=PLAN, cost=900, change=0.1, error=0.001),)


def findings(
    *,
    outcomes: int = 0,
    is_warm: bool = True,
    is_same_measure: bool = True,
    front: Sequence[Prediction] = FRONT,
    axis: str = "attention",
    base_cost: int = 1000,
) -> SensitivityFindings:
    """Predictions that measurements exceed by a half, and of which training leaves a fifth."""
    checks = [
        PredictionCheck(
            plan=PLAN,
            cost=1000 - i,
            kind="predicted",
            predicted=p,
            measured=1.5 * p,
            error=0.0001,
        )
        for i, p in enumerate(PREDICTED)
    ]
    trained = [
        Outcome(
            trial=i + 1,
            plan=PLAN,
            cost=1000 - i,
            predicted=p,
            trained=0.3 * p,
            is_warm=is_warm,
        )
        for i, p in enumerate(PREDICTED[:outcomes])
    ]
    return SensitivityFindings(
        name="study",
        axis=axis,
        base_cost=base_cost,
        changes=[UnitChange(unit="encoder_self", choice="multi_query", plan=PLAN)],
        costs={PLAN: 900},
        measured={PLAN: Measured(0.1, 0.001)},
        front=front,
        checks=checks,
        validity=validity_of(checks),
        chosen=front,
        outcomes=trained,
        is_same_measure=is_same_measure,
    )
