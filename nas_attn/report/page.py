"""The report's page: one file that needs nothing else, made of the record."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from nas_attn.analysis.hypervolume import Progress, progress_of
from nas_attn.analysis.importance import Importance, importance_of
from nas_attn.analysis.noise import Noise, noise_text
from nas_attn.analysis.sensitivity import curve, heat_map, outcome_text
from nas_attn.report.context import ReportContext
from nas_attn.report.figures import svg_bytes
from nas_attn.report.pictures import codes_text, label_of, plan_picture, scheme_styles
from nas_attn.report.tables import (
    cost_text,
    effective_text,
    loss_change_text,
    mark_text,
    percent_text,
    price_text,
    reproduction_texts,
    retention_text,
    state_text,
    time_text,
)
from nas_attn.search.trial_record import TrialRecord, front

MAX_ROWS = 2000
"""Trials that the page holds beside the front; tables hold all."""
MAX_STOPPED = 60
"""Learning curves of trials that were stopped early."""
MAX_FAILURES = 50
MAX_DIMENSIONS = 20
"""Of parallel coordinates."""
CLEAR, CLEAR_COUNT = 2.0, 5
"""Standard errors beyond which, and trials from which on, an effect is coloured."""


def render_page(
    trials: Sequence[TrialRecord],
    context: ReportContext,
    noise: Noise | None,
    chosen: pd.DataFrame,
) -> str:
    """The page as HTML.

    Args:
        trials: of the study, in order.
        context: everything else.
        noise: of the trials.
        chosen: from `front_table`.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    best = front(list(trials))
    shown = _shown(trials, {trial.number for trial in best})
    progress = progress_of(trials, context.objectives)
    series = _series(trials, context, progress)
    importance = importance_of(trials, context.shapes, maximise=context.objectives.maximise)
    parallel = _parallel(best, context)
    curves = _curves(trials, {trial.number for trial in best})
    failed = [trial for trial in trials if trial.state.name == "FAIL" and trial.counts]
    further = list(context.costs)[1:]
    baseline = next((t for t in trials if t.is_baseline and t.is_trained), None)
    agreement, findings = context.agreement, context.findings
    sections = [
        ("choose", "choose", True),
        ("front", "front", True),
        ("table", "table", True),
        ("mattered", "what mattered", bool(importance)),
        ("progress", "search", progress is not None),
        ("curves", "learning curves", bool(curves)),
        ("agreement", "warm against cold", agreement is not None),
        ("predicted", "predicted front", findings is not None),
        ("confirmed", "confirmed", bool(context.confirmed)),
        ("failures", "failures", bool(failed)),
        ("trials", "all trials", True),
        ("settings", "settings", True),
    ]
    return environment.from_string(_resource("page.html")).render(
        style=_resource("page.css"),
        script=_resource("page.js"),
        library=get_plotlyjs(),
        data=_data(shown, context, noise, series, parallel, curves, best),
        sections=[(anchor, words) for anchor, words, there in sections if there],
        name=context.name,
        description=context.description,
        troubles=context.troubles,
        loss=context.loss,
        quality=context.quality,
        maximise=context.objectives.maximise,
        axis=context.axis,
        axes=list(context.costs.items()),
        further=[context.costs[name] for name in further],
        counts_parameters=context.counts_parameters,
        seeds=context.seeds,
        settings=json.dumps(context.settings, indent=2),
        versions=context.versions,
        machine=context.machine,
        noise="" if noise is None else noise_text(noise, [trial.loss or 0.0 for trial in best]),
        time=time_text(trials),
        baseline=baseline,
        budget=_budget(best),
        counts={
            "front": len(best),
            "trained": sum(trial.is_trained for trial in trials),
            "stopped": sum(trial.was_stopped for trial in trials),
            "over": sum(trial.is_over_limit and trial.counts for trial in trials),
            "failed": len(failed),
            "refused": sum(trial.is_refused for trial in trials),
        },
        front=_front_rows(trials, context, chosen),
        parallel=parallel,
        importance=[_importance_row(unit) for unit in importance],
        schemes=list(dict.fromkeys(e.scheme for unit in importance for e in unit.effects)),
        clear_count=CLEAR_COUNT,
        chance=importance[0].chance if importance else None,
        has_models=bool(context.export_text),
        has_startup=len(series) > 1,
        codes={t.number: codes_text(t.plan) for t in trials if t.plan is not None},
        progress=progress,
        curves=curves,
        failures=[_failure(trial) for trial in failed[-MAX_FAILURES:]],
        more_failures=max(0, len(failed) - MAX_FAILURES),
        columns=_columns(context),
        left_out=len(trials) - len(shown),
        confirmed=context.confirmed,
        fine_tuning=context.fine_tuning,
        has_warm=any(trial.is_warm for trial in trials),
        updates=sum(trial.updates for trial in trials),
        agreement=agreement,
        findings=findings,
        outcomes="" if findings is None else outcome_text(findings),
        pictures=_pictures(context),
    )


def _resource(name: str) -> str:
    return resources.files("nas_attn.report").joinpath(name).read_text(encoding="utf-8")


def _shown(trials: Sequence[TrialRecord], on_front: set[int]) -> list[TrialRecord]:
    """The front, the baseline, and as many of the others as the page holds, the last first."""
    kept = {t.number for t in trials if t.number in on_front or t.is_baseline}
    others = [trial.number for trial in trials if trial.number not in kept]
    kept |= set(others[-MAX_ROWS:])
    return [trial for trial in trials if trial.number in kept]


def _columns(context: ReportContext) -> list[tuple[str, str, str]]:
    columns = [("number", "trial", ""), ("state", "state", ""), ("codes", "plan", "")]
    columns += [(name, words, "number") for name, words in context.costs.items()]
    return [*columns, ("loss", context.loss, "number"), ("seconds", "seconds", "number")]


def _budget(best: Sequence[TrialRecord]) -> dict[str, int]:
    costs = [trial.cost or 0 for trial in best] or [0]
    low, high = min(costs), max(costs)
    return {
        "low": low,
        "high": high,
        "middle": (low + high) // 2,
    }


def _data(
    shown: Sequence[TrialRecord],
    context: ReportContext,
    noise: Noise | None,
    series: Sequence[Mapping[str, Any]],
    parallel: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    best: Sequence[TrialRecord],
) -> str:
    """What the page's script reads, as JSON that cannot end the script element."""
    on_front = {trial.number for trial in best}
    data = {
        "loss": context.loss,
        "quality": context.quality,
        "maximise": context.objectives.maximise,
        "costs": [{"name": name, "words": words} for name, words in context.costs.items()],
        "styles": scheme_styles(),
        "export": context.export_text,
        "commands": {trial.number: reproduction_texts(trial) for trial in best},
        "progress": series,
        "parallel": parallel,
        "curves": curves,
        "trials": [_trial(trial, trial.number in on_front, context, noise) for trial in shown],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _series(
    trials: Sequence[TrialRecord], context: ReportContext, progress: Progress | None
) -> list[dict[str, Any]]:
    """The search's hypervolume, and that of the evenly spread trials before its sampler alone."""
    if progress is None:
        return []
    names = ("trials", "spent", "share", "unit")
    series = [{"name": "this search", **{name: getattr(progress, name) for name in names}}]
    search = context.settings.get("search", {})
    is_sampled = search.get("sampler", "stratified_random") != "stratified_random"
    if not is_sampled or "sensitivity" in (search.get("strategy"), search.get("enqueue")):
        return series
    startup = [trial for trial in trials if trial.counts][: 1 + search["startup_trials"]]
    spread = progress_of(startup, context.objectives, progress.reference)
    if spread is not None:
        share = [part * spread.final / progress.final for part in spread.share]
        series.append(
            {
                "name": "stratified random trials alone",
                "trials": [*spread.trials, progress.trials[-1]],
                "spent": [*spread.spent, progress.spent[-1]],
                "share": [*share, share[-1]],
                "unit": progress.unit,
            }
        )
    return series


def _trial(
    trial: TrialRecord, on_front: bool, context: ReportContext, noise: Noise | None
) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": state_text(trial),
        "scheme": None if trial.plan is None else label_of(trial.plan),
        "plan": trial.text,
        "codes": "" if trial.plan is None else codes_text(trial.plan),
        "costs": {name: trial.costs[name] for name in context.costs if name in trial.costs},
        "loss": trial.loss if trial.is_trained else None,
        "losses": trial.losses,
        "noise": None if noise is None or trial.loss is None else noise.at(trial.loss).error,
        "on_front": on_front,
        "baseline": trial.is_baseline,
        "warm": trial.is_warm,
        "duplicate_of": trial.duplicate_of,
        "reason": trial.reason,
        "seconds": round(trial.seconds, 1),
        "updates": trial.updates,
        "folder": trial.folder,
    }


def _front_rows(
    trials: Sequence[TrialRecord], context: ReportContext, chosen: pd.DataFrame
) -> list[dict[str, Any]]:
    by_number = {trial.number: trial for trial in trials}
    further = list(context.costs)[1:]
    rows = []
    for row in chosen.to_dict("records"):
        trial = by_number[row["trial"]]
        left = trial.pruned[0] if trial.pruned else trial.plan
        rows.append(
            {
                "trial": row["trial"],
                "baseline": row["baseline"],
                "mark": mark_text(row),
                "plan": row["plan"],
                "picture": [] if left is None else plan_picture(left, context.shapes),
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


def _parallel(best: Sequence[TrialRecord], context: ReportContext) -> list[dict[str, Any]]:
    """Dimensions of the front: cost, loss, and the scheme of every unit that varies."""
    if len(best) < 2 or not context.shapes:
        return []
    dimensions: list[dict[str, Any]] = [
        {"label": words, "values": [trial.costs.get(name) for trial in best]}
        for name, words in context.costs.items()
    ]
    dimensions.append({"label": context.loss, "values": [trial.loss for trial in best]})
    for site, shape in context.shapes.items():
        for layer in range(shape.num_layers):
            schemes = [
                "" if t.plan is None else t.plan.layers(site, shape.num_layers)[layer].scheme
                for t in best
            ]
            names = sorted(set(schemes))
            if len(names) > 1:
                values = [names.index(scheme) for scheme in schemes]
                label = f"{site}.{layer}"
                dimensions.append({"label": label, "values": values, "names": names})
    return dimensions[:MAX_DIMENSIONS]


def _curves(trials: Sequence[TrialRecord], on_front: set[int]) -> list[dict[str, Any]]:
    """Of the front's trials, the baseline, and the last that were stopped early."""
    stopped = [t for t in trials if t.was_stopped and t.curve][-MAX_STOPPED:]
    kinds = [("stopped", trial) for trial in stopped]
    kinds += [("front", t) for t in trials if t.number in on_front and not t.is_baseline]
    kinds += [("baseline", trial) for trial in trials if trial.is_baseline and trial.is_trained]
    found: list[dict[str, Any]] = []
    for kind, trial in kinds:
        points = [(n, loss) for n, loss in sorted(trial.curve.items()) if math.isfinite(loss)]
        if points:
            updates, values = zip(*points, strict=True)
            entry = {"kind": kind, "number": trial.number, "updates": updates, "values": values}
            found.append(entry)
    # Where every training is validated once, there is nothing to follow.
    return found if any(len(entry["updates"]) > 1 for entry in found) else []


def _failure(trial: TrialRecord) -> dict[str, Any]:
    reason = trial.reason or ""
    lines = reason.strip().splitlines() or ["no reason is known"]
    return {
        "number": trial.number,
        "kind": trial.failure or "",
        "first": lines[-1][:200],
        "reason": reason,
    }


def _pictures(context: ReportContext) -> list[tuple[str, str]]:
    """Figures of the predictions for the page, each with what it shows."""
    if context.findings is None:
        return []
    pictures = []
    for words, figure in (
        ("The predicted front with what was measured", curve(context.findings)),
        ("Change of the loss for each unit and choice", heat_map(context.findings)),
    ):
        encoded = base64.b64encode(svg_bytes(figure)).decode()
        pictures.append((words, f"data:image/svg+xml;base64,{encoded}"))
    return pictures
