"""The front as a Markdown table with a few lines around it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from nas_attn.analysis.trials import Trials
from nas_attn.report.context import ReportContext
from nas_attn.report.formatting import (
    cost_labels,
    cost_text,
    counts_parameters,
    effective_text,
    loss_change_text,
    mark_text,
    noise_text,
    percent_text,
    time_text,
)
from nas_attn.report.rendering import render_markdown


def summary_text(trials: Trials, context: ReportContext) -> str:
    """What summary.md says.

    Args:
        trials: Trials of the study.
        context: Everything else.
    """
    objectives = trials.objectives
    axis, *further = cost_labels(objectives).values()
    effective = ["effective parameters"] if counts_parameters(objectives) else []
    return render_markdown(
        "summary.md",
        name=context.name,
        trained=len(trials.trained),
        seeds=context.seeds,
        time=time_text(trials),
        on_front=len(trials.front),
        stopped=sum(trial.was_stopped for trial in trials),
        over=sum(trial.is_over_limit and trial.uses_budget for trial in trials),
        columns=[axis, "change", *effective, *further, objectives.metric, "change"],
        rows=[_row(row, trials) for row in trials.front_frame().to_dict("records")],
        noise=_noise(trials),
        fine_tuning=context.fine_tuning_text,
        warm=sum(trial.is_warm for trial in trials.front),
        distils=context.distils,
        has_ladder=any(trial.parent is not None for trial in trials),
        updates=sum(trial.updates for trial in trials),
        agreement=context.agreement,
        troubles=context.troubles,
    )


def _row(row: dict[Hashable, Any], trials: Trials) -> dict[str, Any]:
    objectives = trials.objectives
    cells = [f"{row['cost']:,}", percent_text(row)]
    if counts_parameters(objectives):
        cells.append(effective_text(row))
    cells += [cost_text(name, row[name]) for name in objectives.costs[1:]]
    cells += [f"{row['loss']:.4f}", loss_change_text(row)]
    return {"trial": row["trial"], "mark": mark_text(row), "plan": row["plan"], "cells": cells}


def _noise(trials: Trials) -> Mapping[str, Any] | None:
    """The noise of the front's trials against what their losses span; None where it is unknown."""
    noise = trials.noise
    if noise is None or len(trials.front) < 2:
        return None
    losses = [trial.loss or 0.0 for trial in trials.front]
    return {
        "text": noise_text(noise, losses),
        "spread": max(losses) - min(losses),
        "margin": noise.margin(max(losses), min(losses)),
    }
