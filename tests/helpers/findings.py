"""Predictions of a front, made up: what tests of their texts, tables and pages show."""

from __future__ import annotations

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


def predicted_findings(
    *, outcomes: int, is_warm: bool = True, is_same_measure: bool = True
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
    front = [Prediction(plan=PLAN, cost=900, change=0.1, error=0.001)]
    return SensitivityFindings(
        name="study",
        axis="attention",
        base_cost=1000,
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
