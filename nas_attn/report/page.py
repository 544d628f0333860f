"""The report's page: one file that needs nothing else, made of the record."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn.analysis.hypervolume import progress_of
from nas_attn.analysis.importance import Importance, importance_of
from nas_attn.analysis.noise import undecided
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.analysis.trials import Trials
from nas_attn.analysis.verdict import TOLERANCE, Change, changes_of, smallest_good
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.report.confirming import confirmation_advice
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
    state_text,
    time_text,
)
from nas_attn.report.page_data import (
    STARTUP,
    PageParts,
    page_data,
    series_of,
    shown_curves,
    units_of,
)
from nas_attn.report.pages import render
from nas_attn.report.pictures import Cell, codes_of, codes_text, plan_picture
from nas_attn.report.predicted import points_of
from nas_attn.report.sensitivity import curve, heat_map, outcome_text

SCRIPTS = ("page.js", "page_trials.js", "shared_charts.js", "page_charts.js", "page_live.js")
"""Parts of one script, in the order in which they run."""
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
    codes, progress, shown = _codes(trials, context), progress_of(trials), _shown(trials, context)
    searched, confirmed = changes_of(trials, context.confirmed)
    answer = smallest_good(trials, searched, confirmed)
    made = PageParts(
        codes=codes,
        series=series_of(trials, context, progress),
        units=units_of(trials, context) if len(trials.front) > 1 else [],
        curves=shown_curves(trials),
        changes=searched,
        near=undecided(trials, trials.noise),
        answer=None if answer is None else answer.number,
    )
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
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "reload": None if context.reload_seconds is None else f"{context.reload_seconds:g}",
        "verdict": _verdict(trials, answer, confirmed or searched, context),
        "front": _front_rows(trials, context, codes),
        "units": made.units,
        "has_predicted": bool(points_of(trials, context.findings)),
        "trains_predicted": _trains_predicted(trials, context),
        "has_models": bool(context.export_text),
        "progress": progress,
        "has_startup": any(s["name"] == STARTUP for s in made.series),
        "reach": context.band.words(progress) if context.band and progress else "",
        "curves": made.curves,
        "left_out": len(trials) - len(shown),
        "confirmed": _confirmed_rows(context.confirmed),
        "has_tests": any(row["score"].startswith("test ") for row in context.confirmed),
        "fine_tuning": context.fine_tuning_text,
        "agreement": context.agreement,
    }
    data = page_data(shown, trials, context, made)
    return render("page.html", SCRIPTS, data, {**parts, "sections": _sections(parts)})


def _sections(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the sections that the page has."""
    sections = [
        ("choose", "choose", True),
        ("front", "front", True),
        ("table", "table", True),
        ("mattered", "what mattered", bool(parts["importance"])),
        ("progress", "search", parts["progress"] is not None),
        ("curves", "learning curves", bool(parts["curves"])),
        ("agreement", "warm vs. from scratch", parts["agreement"] is not None),
        ("predicted", "predicted front", parts["findings"] is not None),
        ("confirmed", "confirmed", bool(parts["confirmed"])),
        ("failures", "failures", bool(parts["failures"])),
        ("trials", "all trials", True),
        ("settings", "settings", True),
    ]
    return [(anchor, words) for anchor, words, there in sections if there]


def _codes(trials: Trials, context: ReportContext) -> dict[AttentionChoice, str]:
    """Codes of all choices in the trials' plans, in what pruning left of them, and in predicted
    plans."""
    plans = [plan for trial in trials for plan in (trial.plan, *trial.pruned) if plan is not None]
    plans += [point.plan for point in points_of(trials, context.findings)]
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
            "near": len(undecided(trials, noise)),
            "running": sum(trial.state.name == "RUNNING" for trial in trials),
        },
        "states": _states(trials),
    }


def _states(trials: Trials) -> list[tuple[str, int]]:
    """How many trials stand how, those apart that are trained; with them they are all trials."""
    found = Counter(
        "over a limit after pruning" if trial.is_over_limit and trial.pruned else state_text(trial)
        for trial in trials
        if not trial.is_trained
    )
    return found.most_common()


def _trains_predicted(trials: Trials, context: ReportContext) -> bool:
    """Whether most trials are on the front because the search trained a predicted one."""
    is_so = context.settings.get("search", {}).get("strategy") == "sensitivity"
    return is_so and 2 * len(trials.front) > len(trials.trained) > 2


def _labels(objectives: Objectives) -> dict[str, Any]:
    """The objectives in words."""
    costs = cost_labels(objectives)
    axis, *further = costs.values()
    columns = [("number", "trial", ""), ("state", "state", "")]
    columns += [(name, words, "number") for name, words in costs.items()]
    columns += [("loss", objectives.metric, "number"), ("seconds", "seconds", "number")]
    columns += [("codes", "plan", "")]
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
    """Failures by kind and reason, the most frequent first."""
    groups: dict[tuple[str, str], list[TrialRecord]] = {}
    for trial in _failed(trials):
        lines = (trial.reason or "").strip().splitlines() or ["no reason is known"]
        groups.setdefault((trial.failure or "", lines[-1][:200]), []).append(trial)
    rows = [
        {
            "kind": kind,
            "first": first,
            "numbers": [trial.number for trial in group[:MAX_FAILURES]],
            "more": max(0, len(group) - MAX_FAILURES),
            "reason": group[-1].reason or "",
        }
        for (kind, first), group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return {"failures": rows[:MAX_FAILURES], "more_failures": max(0, len(rows) - MAX_FAILURES)}


def _failed(trials: Trials) -> list[TrialRecord]:
    return [trial for trial in trials if trial.state.name == "FAIL" and trial.uses_budget]


def _shown(trials: Trials, context: ReportContext) -> list[TrialRecord]:
    """The front, the baseline, what was confirmed, and as many of the others as the page holds,
    the last first."""
    named = {trial.number for trial in trials.front} | {row["trial"] for row in context.confirmed}
    kept = {t.number for t in trials if t.number in named or t.is_baseline}
    others = [trial.number for trial in trials if trial.number not in kept]
    kept |= set(others[-MAX_ROWS:])
    return [trial for trial in trials if trial.number in kept]


def _verdict(
    trials: Trials,
    answer: TrialRecord | None,
    changes: Mapping[int, Change],
    context: ReportContext,
) -> dict[str, Any]:
    """What the first screen says of the search's answer."""
    baseline = trials.baseline
    advice = confirmation_advice(trials, answer, context)
    found: dict[str, Any] = {"trial": None, "confirm": advice}
    most = 0 if baseline is None else baseline.cost or 0
    found["has_smaller"] = any((trial.cost or 0) < most for trial in trials.trained)
    # Plans that no trial of the search has may be confirmed, which say nothing of its answer.
    found["confirmed"] = max((change.seeds for change in changes.values()), default=0)
    share, score = f"{100 * TOLERANCE:.0f} %", trials.objectives.metric
    if all(change.interval is None for change in changes.values()):
        found["short"] = f"within {share}"
        found["standard"] = f"within {share} of the baseline's {score}"
        found["failed"] = f"loses more than {share} of the baseline's {score}"
    else:
        found["short"] = "not clearly worse"
        found["standard"] = "not clearly worse than the baseline"
        found["failed"] = "is clearly worse than the baseline"
    if answer is None or baseline is None:
        return found
    change = changes[answer.number]
    half = change.interval
    return found | {
        "trial": answer.number,
        "saved": f"{100 - 100 * (answer.cost or 0) / (baseline.cost or 1):.1f} %",
        "change": f"{change.change:+.4f}",
        "interval": None
        if half is None
        else [f"{change.change - half:+.4f}", f"{change.change + half:+.4f}"],
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
        kind = "baseline" if row["baseline"] else "front"
        rows.append(
            {
                "trial": row["trial"],
                "kind": kind if row["on_front"] or row["baseline"] else "near",
                "mark": mark_text(row),
                "picture": [] if left is None else _picture(left, context, codes),
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


def _picture(
    plan: AttentionPlan, context: ReportContext, codes: Mapping[AttentionChoice, str]
) -> list[tuple[str, list[Cell]]]:
    return plan_picture(plan, context.shapes, codes, context.module_parameters)


def _confirmed_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the confirmation; the first of each plan says how many scores the plan has."""
    counts, found = Counter(row["plan"] for row in rows), []
    seen: set[str] = set()
    for row in rows:
        plan = row["plan"]
        found.append({**row, "span": 0 if plan in seen else counts[plan]})
        seen.add(plan)
    return found


def _importance_row(unit: Importance) -> dict[str, Any]:
    effects = {}
    for effect in unit.effects:
        is_clear = effect.count >= CLEAR_COUNT and abs(effect.mean) > CLEAR * (effect.error or 0.0)
        tone = (" good" if effect.mean < 0 else " bad") if is_clear else ""
        effects[effect.scheme] = {
            "mean": round(effect.mean, 4) + 0.0,  # no minus before a zero
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
