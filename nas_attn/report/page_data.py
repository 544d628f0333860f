"""What the script of the page reads: trials, curves and commands as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from nas_attn.analysis.hypervolume import HypervolumeCurve, progress_of
from nas_attn.analysis.reproduction import reproduction_script, with_names
from nas_attn.analysis.trials import Trials
from nas_attn.analysis.verdict import Change
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionChoice
from nas_attn.report.context import ReportContext
from nas_attn.report.formatting import cost_labels, state_text
from nas_attn.report.pictures import codes_text, initials, label_of, main_scheme, scheme_styles
from nas_attn.report.predicted import predicted_data

MAX_STOPPED = 60
"""Learning curves of trials that were stopped early."""
STARTUP = "start-up trials only"
MAX_UNITS = 18
"""Units of parallel coordinates: six layers at three sites."""


@dataclass(frozen=True, kw_only=True)
class PageParts:
    """What of a page's data other modules make.

    Args:
        codes: Codes of all choices, from `codes_of`.
        series: Hypervolume curves, from `series_of`.
        units: Units of plans that vary, from `units_of`.
        curves: Learning curves, from `shown_curves`.
        changes: Changes against the baseline by trial number, from `changes_of`.
        near: Numbers of trials off the front that nothing clearly dominates.
        answer: Number of the trial that the page names first; None where there is none.
    """

    codes: Mapping[AttentionChoice, str]
    series: Sequence[Mapping[str, Any]]
    units: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    changes: Mapping[int, Change]
    near: AbstractSet[int]
    answer: int | None


def page_data(
    shown: Sequence[TrialRecord], trials: Trials, context: ReportContext, parts: PageParts
) -> dict[str, Any]:
    """What the page's script reads, for JSON.

    Args:
        shown: Trials that the page holds.
        trials: Trials of the study.
        context: Everything else that a report says.
        parts: What other modules make of the trials.
    """
    objectives, best = trials.objectives, trials.front
    labels = cost_labels(objectives)
    on_front, by_number = {t.number for t in best}, {t.number: t for t in _listed(trials, parts)}
    codes = parts.codes
    return {
        "loss": objectives.metric,
        "quality": objectives.quality,
        "maximise": objectives.maximise,
        "costs": [{"name": name, "words": words} for name, words in labels.items()],
        "styles": scheme_styles(),
        "schemes": {code: choice.scheme for choice, code in codes.items()},
        "choices": {code: str(choice) for choice, code in codes.items()},
        "initials": {choice.scheme: initials(choice.scheme) for choice in codes},
        "export": context.export_text,
        "commands": {
            # Trainings that were only replayed cannot be repeated.
            number: "" if context.is_replayed else reproduction_script(trial)
            for number, trial in by_number.items()
        },
        "evaluate": {
            number: with_names(text, by_number[number])
            for number, text in context.evaluate.items()
            if number in by_number
        },
        "predicted": predicted_data(trials, context, codes),
        "answer": parts.answer,
        "confirmed": _confirmed(trials, context),
        "progress": parts.series,
        "units": parts.units,
        "curves": parts.curves,
        "trials": [
            _trial(trial, trials, parts, context)
            | {"on_front": trial.number in on_front}
            | ({"folder": None} if context.is_replayed else {})
            for trial in shown
        ],
    }


def _listed(trials: Trials, parts: PageParts) -> list[TrialRecord]:
    """The front, what is within its noise, and the baseline."""
    named = {trial.number for trial in trials.front} | set(parts.near)
    return [trial for trial in trials.trained if trial.number in named or trial.is_baseline]


def _confirmed(trials: Trials, context: ReportContext) -> dict[int, dict[str, Any]]:
    """Rows of the study's own loss, by trial number."""
    score = f"validation {trials.objectives.metric}"
    names = ("mean", "error", "change", "interval", "seeds")
    return {
        row["trial"]: {name: row[name] for name in names}
        for row in context.confirmed
        if row["score"] == score and row["trial"] is not None
    }


def series_of(
    trials: Trials, context: ReportContext, progress: HypervolumeCurve | None
) -> list[dict[str, Any]]:
    """The search's hypervolume, and that of the evenly spread trials before its sampler alone."""
    if progress is None:
        return []
    names = ("trials", "spent", "share", "unit")
    series = [{"name": "this search", **{name: getattr(progress, name) for name in names}}]
    series += _band(context, progress)
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
                "name": STARTUP,
                "trials": [*spread.trials, progress.trials[-1]],
                "spent": [*spread.spent, progress.spent[-1]],
                "share": [*share, share[-1]],
                "unit": progress.unit,
            }
        )
    return series


def _band(context: ReportContext, progress: HypervolumeCurve) -> list[dict[str, Any]]:
    """What as many random proposals would have reached."""
    shares = None if context.band is None else context.band.shares(progress)
    if shares is None:
        return []
    trials = range(1, len(shares["middle"]) + 1)
    each = progress.spent[-1] / progress.trials[-1]
    return [
        {
            "name": "random proposals",
            "trials": list(trials),
            "spent": [each * count for count in trials],
            "share": shares["middle"],
            "low": shares["low"],
            "high": shares["high"],
            "unit": progress.unit,
        }
    ]


def _trial(
    trial: TrialRecord, trials: Trials, parts: PageParts, context: ReportContext
) -> dict[str, Any]:
    noise, costs, change = trials.noise, trials.objectives.costs, parts.changes.get(trial.number)
    return {
        "number": trial.number,
        "state": state_text(trial),
        "scheme": None if trial.plan is None else label_of(trial.plan),
        "most": None if trial.plan is None else main_scheme(trial.plan, context.shapes),
        "plan": trial.text,
        "codes": "" if trial.plan is None else codes_text(trial.plan, parts.codes),
        "costs": {name: trial.costs[name] for name in costs if name in trial.costs},
        "loss": trial.loss if trial.is_trained else None,
        "losses": trial.losses,
        "noise": None if noise is None or trial.loss is None else noise.at(trial.loss).error,
        "change": None if change is None else change.change,
        "interval": None if change is None else change.interval,
        "near": trial.number in parts.near,
        "baseline": trial.is_baseline,
        "warm": trial.is_warm,
        "parent": trial.parent,
        "duplicate_of": trial.duplicate_of,
        "reason": trial.reason,
        "seconds": round(trial.seconds, 1),
        "updates": trial.updates,
        "folder": trial.folder,
    }


def units_of(trials: Trials, context: ReportContext) -> list[dict[str, Any]]:
    """Sites and layers at which the trained plans have several schemes, with short labels."""
    done = [trial.plan for trial in trials.trained if trial.plan is not None]
    units = []
    for site, shape in context.shapes.items():
        for layer in range(shape.num_layers):
            schemes = {plan.layers(site, shape.num_layers)[layer].scheme for plan in done}
            if len(schemes) > 1:
                words = f"{site}.{layer}"
                label = f"{initials(site)}.{layer}"
                units.append({"site": site, "layer": layer, "words": words, "label": label})
    return units[:MAX_UNITS]


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
