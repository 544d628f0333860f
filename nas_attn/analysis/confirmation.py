"""What trainings with fresh seeds say of the front."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nas_attn.analysis.noise import standard_error
from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.measures import maximises
from nas_attn.plan import AttentionPlan

LOSSES = ("loss", "nll_loss", "ppl")
"""Forms of one loss."""


def confirmation_rows(trials: Trials, numbers: Mapping[AttentionPlan, int]) -> list[dict[str, Any]]:
    """What trainings with fresh seeds gave, one row for each trial and score.

    Columns: trial (its number in the search), plan, baseline, cost, score (its name; the validation
    objective comes first), seeds, mean, error (standard error of the mean), change (against the
    baseline, mean), interval (half of its 95 % interval: Student's, seeds taken as pairs), verdict
    (better, worse, or noise if the interval holds zero).

    Args:
        trials: Trials of the confirmation.
        numbers: Numbers of the search's trials, by plan.
    """
    baseline, loss = trials.baseline, trials.objectives.metric
    rows = []
    for trial in sorted(trials.trained, key=lambda t: (t.cost or 0, t.number)):
        reference: dict[str, list[float]] = {}
        if baseline is not None and trial is not baseline:
            reference = _scores(baseline, loss)
        for name, values in _scores(trial, loss).items():
            rows.append(
                {
                    "trial": None if trial.plan is None else numbers.get(trial.plan),
                    "plan": trial.text,
                    "baseline": trial.is_baseline,
                    "cost": trial.cost,
                    "score": name,
                    "seeds": len(values),
                    "mean": statistics.fmean(values),
                    "error": standard_error(values),
                    **_change(values, reference.get(name), maximise=maximises(name.split()[-1])),
                }
            )
    return rows


def paired_change(
    values: Sequence[float], reference: Sequence[float]
) -> tuple[float, float | None]:
    """Mean change of values against others with the same seeds, and half of its 95 % interval.

    The interval is Student's, seeds taken as pairs; None of a single seed.
    """
    pairs = [value - other for value, other in zip(values, reference, strict=True)]
    change, error = statistics.fmean(pairs), standard_error(pairs)
    if error is None:
        return change, None
    from scipy.stats import t

    return change, float(t.ppf(0.975, len(pairs) - 1) * error)


def _scores(trial: TrialRecord, loss: str) -> dict[str, list[float]]:
    scores = {f"validation {loss}": list(trial.losses)}
    names = list(trial.tests[0]) if trial.tests else []
    # Of the losses, the study's own is enough, if it was measured.
    names = [name for name in names if loss not in names or name not in LOSSES or name == loss]
    for name in names:
        scores[f"test {name}"] = [test[name] for test in trial.tests]
    return scores


def _change(
    values: Sequence[float], reference: Sequence[float] | None, *, maximise: bool
) -> dict[str, Any]:
    if not reference or len(reference) != len(values):
        return {"change": None, "interval": None, "verdict": None}
    change, interval = paired_change(values, reference)
    if interval is None:
        return {"change": change, "interval": None, "verdict": None}
    verdict = "better" if (change > 0) == maximise else "worse"
    return {
        "change": change,
        "interval": interval,
        "verdict": verdict if abs(change) > interval else "noise",
    }
