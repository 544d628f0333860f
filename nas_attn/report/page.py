"""The report's page: one file that needs nothing else, made of the record."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from nas_attn.analysis.hypervolume import progress_of
from nas_attn.analysis.importance import Importance, importance_of
from nas_attn.analysis.reproduction import reproduction_texts
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.analysis.trials import Trials
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionChoice
from nas_attn.report.context import ReportContext
from nas_attn.report.figures import svg_bytes
from nas_attn.report.formatting import (
    cost_labels,
    cost_text,
    counts_parameters,
    effective_text,
    loss_change_text,
    mark_text,
    noise_text,
    percent_text,
    price_text,
    retention_text,
    time_text,
)
from nas_attn.report.page_data import page_data, parallel_of, series_of, shown_curves
from nas_attn.report.pictures import codes_of, codes_text, plan_picture
from nas_attn.report.sensitivity import curve, heat_map, outcome_text

PAGES = Environment(autoescape=True, undefined=StrictUndefined)
MAX_ROWS = 2000
"""Trials that the page holds beside the front; tables hold all."""
MAX_FAILURES = 50
CLEAR, CLEAR_COUNT = 2.0, 5
"""Standard errors beyond which, and trials from which on, an effect is coloured."""


def render_page(trials: Trials, context: ReportContext) -> str:
    """The page as HTML.

    Args:
        trials: Trials of the study, in order.
        context: Everything else.
    """
    from plotly.offline import get_plotlyjs

    codes = _codes(trials)
    progress = progress_of(trials)
    series, parallel = series_of(trials, context, progress), parallel_of(trials, context)
    curves, shown = shown_curves(trials), _shown(trials)
    parts = {
        **_facts(trials, codes),
        **_labels(trials.objectives),
        **_mattered(importance_of(trials, context.shapes)),
        **_failures(trials),
        **_predicted(context.findings),
        "name": context.name,
        "description": context.description,
        "troubles": context.troubles,
        "seeds": context.seeds,
        "settings": json.dumps(context.settings, indent=2),
        "versions": context.versions,
        "machine": context.machine,
        "budget": _budget(trials.front),
        "front": _front_rows(trials, context, codes),
        "parallel": parallel,
        "has_models": bool(context.export_text),
        "progress": progress,
        "has_startup": len(series) > 1,
        "curves": curves,
        "left_out": len(trials) - len(shown),
        "confirmed": context.confirmed,
        "fine_tuning": context.fine_tuning_text,
        "agreement": context.agreement,
    }
    return PAGES.from_string(_resource("page.html")).render(
        style=_resource("page.css"),
        script=_resource("page.js"),
        library=get_plotlyjs(),
        data=page_data(shown, trials, context, codes, series, parallel, curves),
        sections=_sections(parts),
        **parts,
    )


def _resource(name: str) -> str:
    return resources.files("nas_attn.report").joinpath(name).read_text(encoding="utf-8")


def _sections(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the sections that the page has."""
    sections = [
        ("choose", "choose", True),
        ("front", "front", True),
        ("table", "table", True),
        ("mattered", "what mattered", bool(parts["importance"])),
        ("progress", "search", parts["progress"] is not None),
        ("curves", "learning curves", bool(parts["curves"])),
        ("agreement", "warm against cold", parts["agreement"] is not None),
        ("predicted", "predicted front", parts["findings"] is not None),
        ("confirmed", "confirmed", bool(parts["confirmed"])),
        ("failures", "failures", bool(parts["failures"])),
        ("trials", "all trials", True),
        ("settings", "settings", True),
    ]
    return [(anchor, words) for anchor, words, there in sections if there]


def _codes(trials: Trials) -> dict[AttentionChoice, str]:
    """Codes of all choices in the trials' plans, and in what pruning left of them."""
    plans = [plan for trial in trials for plan in (trial.plan, *trial.pruned) if plan is not None]
    return codes_of(dict.fromkeys(plans))


def _facts(trials: Trials, codes: Mapping[AttentionChoice, str]) -> dict[str, Any]:
    """What the whole search comes to."""
    best, noise = trials.front, trials.noise
    return {
        "noise": "" if noise is None else noise_text(noise, [trial.loss or 0.0 for trial in best]),
        "time": time_text(trials),
        "baseline": trials.baseline,
        "has_warm": any(trial.is_warm for trial in trials),
        "has_ladder": any(trial.parent is not None for trial in trials),
        "updates": sum(trial.updates for trial in trials),
        "codes": {t.number: codes_text(t.plan, codes) for t in trials if t.plan is not None},
        "counts": {
            "front": len(best),
            "trained": len(trials.trained),
            "stopped": sum(trial.was_stopped for trial in trials),
            "over": sum(trial.is_over_limit and trial.uses_budget for trial in trials),
            "failed": len(_failed(trials)),
            "refused": sum(trial.is_infeasible for trial in trials),
        },
    }


def _labels(objectives: Objectives) -> dict[str, Any]:
    """The objectives in words."""
    costs = cost_labels(objectives)
    axis, *further = costs.values()
    columns = [("number", "trial", ""), ("state", "state", ""), ("codes", "plan", "")]
    columns += [(name, words, "number") for name, words in costs.items()]
    columns += [("loss", objectives.metric, "number"), ("seconds", "seconds", "number")]
    return {
        "loss": objectives.metric,
        "quality": objectives.quality,
        "maximise": objectives.maximise,
        "axis": axis,
        "axes": list(costs.items()),
        "further": further,
        "counts_parameters": counts_parameters(objectives),
        "columns": columns,
    }


def _mattered(importance: Sequence[Importance]) -> dict[str, Any]:
    return {
        "importance": [_importance_row(unit) for unit in importance],
        "schemes": list(dict.fromkeys(e.scheme for unit in importance for e in unit.effects)),
        "clear_count": CLEAR_COUNT,
        "chance": importance[0].chance if importance else None,
    }


def _failures(trials: Trials) -> dict[str, Any]:
    failed = _failed(trials)
    return {
        "failures": [_failure(trial) for trial in failed[-MAX_FAILURES:]],
        "more_failures": max(0, len(failed) - MAX_FAILURES),
    }


def _failed(trials: Trials) -> list[TrialRecord]:
    return [trial for trial in trials if trial.state.name == "FAIL" and trial.uses_budget]


def _shown(trials: Trials) -> list[TrialRecord]:
    """The front, the baseline, and as many of the others as the page holds, the last first."""
    on_front = {trial.number for trial in trials.front}
    kept = {t.number for t in trials if t.number in on_front or t.is_baseline}
    others = [trial.number for trial in trials if trial.number not in kept]
    kept |= set(others[-MAX_ROWS:])
    return [trial for trial in trials if trial.number in kept]


def _budget(best: Sequence[TrialRecord]) -> dict[str, int]:
    costs = [trial.cost or 0 for trial in best] or [0]
    low, high = min(costs), max(costs)
    return {
        "low": low,
        "high": high,
        "middle": (low + high) // 2,
    }


def _front_rows(
    trials: Trials, context: ReportContext, codes: Mapping[AttentionChoice, str]
) -> list[dict[str, Any]]:
    by_number = {trial.number: trial for trial in trials}
    further = trials.objectives.costs[1:]
    rows = []
    for row in trials.front_frame().to_dict("records"):
        trial = by_number[row["trial"]]
        left = trial.pruned[0] if trial.pruned else trial.plan
        rows.append(
            {
                "trial": row["trial"],
                "baseline": row["baseline"],
                "mark": mark_text(row),
                "plan": row["plan"],
                "picture": [] if left is None else plan_picture(left, context.shapes, codes),
                "commands": reproduction_texts(trial),
                "evaluate": context.evaluate.get(row["trial"], ""),
                "cost": row["cost"],
                "cost_change": percent_text(row),
                "effective": effective_text(row),
                "further": [cost_text(name, row[name]) for name in further],
                "loss": f"{row['loss']:.4f}",
                "loss_change": loss_change_text(row),
                "retention": retention_text(row),
                "price": price_text(row),
            }
        )
    return rows


def _importance_row(unit: Importance) -> dict[str, Any]:
    effects = {}
    for effect in unit.effects:
        is_clear = effect.count >= CLEAR_COUNT and abs(effect.mean) > CLEAR * (effect.error or 0.0)
        tone = (" good" if effect.mean < 0 else " bad") if is_clear else ""
        effects[effect.scheme] = {
            "mean": effect.mean,
            "error": effect.error,
            "count": effect.count,
            "tone": tone,
        }
    return {
        "unit": unit.unit,
        "share": unit.share,
        "is_clear": unit.is_clear,
        "effects": effects,
    }


def _failure(trial: TrialRecord) -> dict[str, Any]:
    reason = trial.reason or ""
    lines = reason.strip().splitlines() or ["no reason is known"]
    return {
        "number": trial.number,
        "kind": trial.failure or "",
        "first": lines[-1][:200],
        "reason": reason,
    }


def _predicted(findings: SensitivityFindings | None) -> dict[str, Any]:
    """What single conversions predict, with figures for the page."""
    if findings is None:
        return {"findings": None, "outcomes": "", "pictures": []}
    pictures = []
    for words, figure in (
        ("The predicted front with what was measured", curve(findings)),
        ("Change of the loss for each unit and choice", heat_map(findings)),
    ):
        encoded = base64.b64encode(svg_bytes(figure)).decode()
        pictures.append((words, f"data:image/svg+xml;base64,{encoded}"))
    return {"findings": findings, "outcomes": outcome_text(findings), "pictures": pictures}
