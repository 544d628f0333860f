"""Several searches on one page: their fronts in one chart, and tables of what they found."""

from __future__ import annotations

from typing import Any

from nas_attn.analysis.comparison import Comparison, ComparisonRow
from nas_attn.analysis.searches import RunSummary, point_of
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.pareto import non_dominated
from nas_attn.report.formatting import cost_words
from nas_attn.report.pages import render

SCRIPTS = ("shared_charts.js", "compare.js")
MAX_POINTS = 2000
"""Trials off the front that the page draws of each search, the last first."""


def render_comparison(comparison: Comparison, reference: str, interval: str) -> str:
    """The page as HTML.

    Args:
        comparison: Comparison of searches.
        reference: Sentence on the reference of the hypervolumes.
        interval: Sentences on what the intervals cover.
    """
    objectives = comparison.searches[0].objectives
    parts = {
        "names": [search.name for search in comparison.searches],
        "verdicts": [_verdict(row, comparison) for row in comparison.rows[1:]],
        "axis": cost_words(objectives.primary_cost),
        "loss": objectives.metric,
        "quality": objectives.quality,
        "rows": comparison.rows,
        "reference": reference,
        "interval": interval,
        "notes": comparison.notes,
        "points": _table(comparison),
        "has_noise": any(search.trials.noise is not None for search in comparison.searches),
    }
    return render("compare.html", SCRIPTS, _data(comparison), parts)


def _verdict(row: ComparisonRow, comparison: Comparison) -> dict[str, Any]:
    """What the hypervolumes say of a search against the first."""
    kind = ""
    if row.ratio_low is not None and row.ratio_high is not None:
        kind = "more" if row.ratio_low > 1 else "less" if row.ratio_high < 1 else "none"
    return {"row": row, "first": comparison.rows[0].study, "kind": kind}


def _data(comparison: Comparison) -> dict[str, Any]:
    """What the page's script reads."""
    objectives = comparison.searches[0].objectives
    return {
        "loss": objectives.metric,
        "quality": objectives.quality,
        "axis": cost_words(objectives.primary_cost),
        "reference": [comparison.reference.cost, comparison.reference.loss],
        "studies": [_study(search) for search in comparison.searches],
    }


def _study(search: RunSummary) -> dict[str, Any]:
    best = {trial.number for trial in front_of(search)}
    rest = [trial for trial in search.trained if trial.number not in best and not trial.is_baseline]
    baseline = search.baseline
    return {
        "name": search.name,
        "front": [_point(trial, search) for trial in front_of(search)],
        "rest": [_point(trial, search) for trial in rest[-MAX_POINTS:]],
        "baseline": None if baseline is None else _point(baseline, search),
    }


def front_of(search: RunSummary) -> list[TrialRecord]:
    """The trials that no other dominates in first cost and loss, from small to large.

    Args:
        search: One of the searches compared.
    """
    trained = search.trained
    best = [trained[index] for index in non_dominated([point_of(trial) for trial in trained])]
    return sorted(best, key=point_of)


def _point(trial: TrialRecord, search: RunSummary) -> dict[str, Any]:
    noise = search.trials.noise
    return {
        "trial": trial.number,
        "cost": trial.cost,
        "loss": trial.loss,
        "noise": None if noise is None else noise.at(trial.loss or 0.0).error,
        "plan": trial.text,
    }


def _table(comparison: Comparison) -> list[dict[str, Any]]:
    """The fronts' points and the baselines, from small to large, each against its own search's
    baseline."""
    rows = []
    for turn, search in enumerate(comparison.searches):
        base = search.baseline
        best = front_of(search)
        is_dominated = base is not None and base.number not in {trial.number for trial in best}
        for trial in [*best, *([base] if base is not None and is_dominated else [])]:
            is_compared = base is not None and trial is not base
            saved = (trial.cost or 0) / (base.cost or 1) - 1 if base is not None else 0.0
            change = (trial.loss or 0.0) - (base.loss or 0.0) if base is not None else 0.0
            rows.append(
                _point(trial, search)
                | {
                    "study": search.name,
                    "turn": turn,
                    "point": point_of(trial),
                    "baseline": trial.is_baseline,
                    "saved": f"{saved:+.1%}" if is_compared else "",
                    "change": f"{change:+.4f}" if is_compared else "",
                }
            )
    common = set(non_dominated([row["point"] for row in rows]))
    marked = [row | {"common": place in common} for place, row in enumerate(rows)]
    return sorted(marked, key=lambda row: (row["point"], row["turn"]))
