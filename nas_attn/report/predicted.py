"""What the page offers beside trained models: plans of the predicted front."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.analysis.trials import Trials
from nas_attn.engine.sensitivity import Prediction, spread_predictions
from nas_attn.plan import AttentionChoice
from nas_attn.report.context import ReportContext
from nas_attn.report.pictures import plan_picture

MAX_POINTS = 200
"""Points of the predicted front that the page holds, spread evenly, beside the recommended."""


def points_of(trials: Trials, findings: SensitivityFindings | None) -> list[Prediction]:
    """Predicted plans that the page offers, from small to large; none where predictions are no
    guide, or are about another cost than the trials.

    Args:
        trials: Trials of the study.
        findings: What single conversions predict.
    """
    baseline = trials.baseline
    if findings is None or not findings.is_guide or baseline is None:
        return []
    if findings.axis != trials.objectives.primary_cost:
        return []
    spread = (*spread_predictions(findings.front, MAX_POINTS), *findings.chosen)
    points = {point.plan: point for point in spread if point.cost < findings.base_cost}
    return sorted(points.values(), key=lambda point: (point.cost, point.change))


def predicted_data(
    trials: Trials, context: ReportContext, codes: Mapping[AttentionChoice, str]
) -> dict[str, Any]:
    """What the page's script reads of predictions: points, and how their plans are drawn.

    A point's loss is the trained baseline's and the change that is predicted; where it is known,
    times what fine-tuning left of such changes. It is None in another measure than the study's.

    Args:
        trials: Trials of the study.
        context: Everything else that a report says.
        codes: Codes of all choices, those of predicted plans included.
    """
    findings, baseline = context.findings, trials.baseline
    numbers = {trial.plan: trial.number for trial in trials.trained}
    cells: dict[str, dict[str, tuple[str, str, int]]] = {}
    rows = []
    for point in points_of(trials, findings):
        assert findings is not None and baseline is not None
        picture = plan_picture(point.plan, context.shapes, codes, context.module_parameters)
        for site, drawn in picture:
            of_site = cells.setdefault(site, {})
            of_site |= {c.code: (c.words, c.color, round(100 * c.share)) for c in drawn}
        change = findings.corrected(point.change)
        left = change * (1.0 if findings.remaining is None else findings.remaining)
        rows.append(
            {
                "cost": point.cost,
                "change": change,
                "loss": (baseline.loss or 0.0) + left if findings.is_same_measure else None,
                "trial": numbers.get(point.plan),
                "words": str(point.plan),
                "plan": shlex.quote(point.plan.dumps()),
                "picture": [[site, [cell.code for cell in drawn]] for site, drawn in picture],
            }
        )
    return {
        "points": rows,
        "cells": cells,
        "remaining": None if findings is None else findings.remaining,
        "convert": shlex.join(("nas-attn", "convert", *context.convert)) if context.convert else "",
    }
