"""What the script of the page reads: trials, curves and commands as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn.analysis.hypervolume import HypervolumeCurve, progress_of
from nas_attn.analysis.reproduction import reproduction_texts
from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionChoice
from nas_attn.report.context import ReportContext
from nas_attn.report.formatting import cost_labels, state_text
from nas_attn.report.pictures import codes_text, label_of, scheme_styles

MAX_STOPPED = 60
"""Learning curves of trials that were stopped early."""
MAX_DIMENSIONS = 20
"""Of parallel coordinates."""


def page_data(
    shown: Sequence[TrialRecord],
    trials: Trials,
    context: ReportContext,
    codes: Mapping[AttentionChoice, str],
    series: Sequence[Mapping[str, Any]],
    parallel: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
) -> str:
    """What the page's script reads, as JSON that cannot end the script element.

    Args:
        shown: Trials that the page holds.
        trials: Trials of the study.
        context: Everything else that a report says.
        codes: Codes of all choices, from `codes_of`.
        series: Hypervolume curves, from `series_of`.
        parallel: Dimensions of the front, from `parallel_of`.
        curves: Learning curves, from `shown_curves`.
    """
    objectives, best = trials.objectives, trials.front
    labels = cost_labels(objectives)
    on_front = {trial.number for trial in best}
    data = {
        "loss": objectives.metric,
        "quality": objectives.quality,
        "maximise": objectives.maximise,
        "costs": [{"name": name, "words": words} for name, words in labels.items()],
        "styles": scheme_styles(),
        "export": context.export_text,
        "commands": {trial.number: reproduction_texts(trial) for trial in best},
        "progress": series,
        "parallel": parallel,
        "curves": curves,
        "trials": [
            _trial(trial, trials, codes) | {"on_front": trial.number in on_front} for trial in shown
        ],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def series_of(
    trials: Trials, context: ReportContext, progress: HypervolumeCurve | None
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
    startup = [trial for trial in trials if trial.uses_budget][: 1 + search["startup_trials"]]
    spread = progress_of(Trials(startup, trials.objectives), progress.reference)
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
    trial: TrialRecord, trials: Trials, codes: Mapping[AttentionChoice, str]
) -> dict[str, Any]:
    noise, costs = trials.noise, trials.objectives.costs
    return {
        "number": trial.number,
        "state": state_text(trial),
        "scheme": None if trial.plan is None else label_of(trial.plan),
        "plan": trial.text,
        "codes": "" if trial.plan is None else codes_text(trial.plan, codes),
        "costs": {name: trial.costs[name] for name in costs if name in trial.costs},
        "loss": trial.loss if trial.is_trained else None,
        "losses": trial.losses,
        "noise": None if noise is None or trial.loss is None else noise.at(trial.loss).error,
        "baseline": trial.is_baseline,
        "warm": trial.is_warm,
        "parent": trial.parent,
        "duplicate_of": trial.duplicate_of,
        "reason": trial.reason,
        "seconds": round(trial.seconds, 1),
        "updates": trial.updates,
        "folder": trial.folder,
    }


def parallel_of(trials: Trials, context: ReportContext) -> list[dict[str, Any]]:
    """Dimensions of the front: cost, loss, and the scheme of every unit that varies."""
    best = trials.front
    if len(best) < 2 or not context.shapes:
        return []
    dimensions: list[dict[str, Any]] = [
        {"label": words, "values": [trial.costs.get(name) for trial in best]}
        for name, words in cost_labels(trials.objectives).items()
    ]
    dimensions.append({"label": trials.objectives.metric, "values": [trial.loss for trial in best]})
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


def shown_curves(trials: Trials) -> list[dict[str, Any]]:
    """Of the front's trials, the baseline, and the last that were stopped early."""
    on_front = {trial.number for trial in trials.front}
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
