"""A study's trials and front as tables."""

from __future__ import annotations

import csv
import html
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nas_attn.analysis.noise import Noise, undecided
from nas_attn.curves import Curve, Point
from nas_attn.fairseq_tools.commands import TENSORBOARD, maximises, value_of, with_value
from nas_attn.fairseq_tools.costs import MEASURED_COSTS
from nas_attn.plan import AttentionPlan
from nas_attn.search.objectives import Objectives
from nas_attn.search.trial_record import TrialRecord, front
from nas_attn.shell import shell_text
from nas_attn.trials.layout import BEST, PRUNED, START

LOSSES = ("loss", "nll_loss", "ppl")
"""Forms of one loss."""


def trials_table(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row for each trial.

    Columns: trial, state, baseline, warm (started from the baseline), on_front, within_noise (off
    the front, but nothing dominates it beyond the noise), plan, cost (on the axis of the
    objectives), cost_certain (whether it was known before training), effective_cost (if it counts
    parameters, those of them that act), every cost by name, loss (mean over seeds), loss_std (over
    seeds), loss_error (standard error of the mean), noise (standard error of trials of such a
    loss), seeds, seconds, updates, attempts (continued after a fault), duplicate_of, failure (its
    kind), reason, command (of the first seed), folder.
    """
    on_front = {trial.number for trial in front(list(trials))}
    noise = Noise.of(trials)
    tied = undecided(trials, noise)
    names = list(dict.fromkeys(name for trial in trials for name in trial.costs))
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "baseline": trial.is_baseline,
            "warm": trial.is_warm,
            "on_front": trial.number in on_front,
            "within_noise": trial.number in tied,
            "plan": trial.text,
            "cost": trial.cost,
            "cost_certain": trial.certain,
            "effective_cost": trial.effective,
            **{name: trial.costs.get(name) for name in names},
            "loss": trial.loss,
            "loss_std": statistics.stdev(trial.losses) if len(trial.losses) > 1 else None,
            "loss_error": _standard_error(trial.losses),
            "noise": None if noise is None or trial.loss is None else noise.at(trial.loss).error,
            "seeds": len(trial.losses),
            "seconds": trial.seconds,
            "updates": trial.updates,
            "attempts": len(trial.attempts),
            "duplicate_of": trial.duplicate_of,
            "failure": trial.failure,
            "reason": trial.reason,
            "command": next(iter(reproduction_texts(trial)), ""),
            "folder": trial.folder,
        }
        for trial in trials
    ]
    counts = (name for name in names if name not in MEASURED_COSTS)
    whole = ["cost", "effective_cost", "duplicate_of", *counts]
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(whole, "Int64")) if rows else table


def front_table(trials: Sequence[TrialRecord], objectives: Objectives) -> pd.DataFrame:
    """The front, what is within its noise, and the baseline, from small to large.

    The baseline has a row even if it is dominated; `on_front` tells.

    Columns: those of `trials_table`, and, against the baseline if it is complete: loss_change;
    cost_change (a fraction); retention (baseline's loss over the trial's, or score over the
    baseline's score where higher is better); price (loss_change for each tenth of the cost that is
    saved, empty where nothing is).
    """
    table = trials_table(trials)
    if table.empty:
        return table
    baseline = next((t for t in trials if t.is_baseline and t.is_trained), None)
    number = None if baseline is None else baseline.number
    chosen = table[table["on_front"] | table["within_noise"] | (table["trial"] == number)]
    chosen = chosen.sort_values(["cost", "trial"]).reset_index(drop=True)
    if baseline is not None and baseline.loss is not None and baseline.cost is not None:
        chosen["loss_change"] = chosen["loss"] - baseline.loss
        chosen["cost_change"] = chosen["cost"] / baseline.cost - 1
        better, worse = chosen["loss"], pd.Series(baseline.loss, index=chosen.index)
        if not objectives.maximise:
            better, worse = worse, better
        chosen["retention"] = (better / worse).where(worse != 0)
        saved = -chosen["cost_change"]
        chosen["price"] = (chosen["loss_change"] / saved * 0.1).where(saved > 0)
    return chosen


def _standard_error(losses: Sequence[float]) -> float | None:
    if len(losses) < 2:
        return None
    return float(statistics.stdev(losses) / len(losses) ** 0.5)


def confirmation_rows(
    trials: Sequence[TrialRecord], objectives: Objectives, numbers: Mapping[AttentionPlan, int]
) -> list[dict[str, Any]]:
    """What trainings with fresh seeds gave, one row for each trial and score.

    Columns: trial (its number in the search), plan, baseline, cost, score (its name; the validation
    objective comes first), seeds, mean, error (standard error of the mean), change (against the
    baseline, mean), interval (half of its 95 % interval: Student's, seeds taken as pairs), verdict
    (better, worse, or noise if the interval holds nought).

    Args:
        trials: of the confirmation.
        objectives: of the study.
        numbers: of the search's trials, by plan.
    """
    complete = [trial for trial in trials if trial.is_trained]
    baseline = next((trial for trial in complete if trial.is_baseline), None)
    rows = []
    for trial in sorted(complete, key=lambda t: (t.cost or 0, t.number)):
        reference: dict[str, list[float]] = {}
        if baseline is not None and trial is not baseline:
            reference = _scores(baseline, objectives.loss)
        for name, values in _scores(trial, objectives.loss).items():
            rows.append(
                {
                    "trial": None if trial.plan is None else numbers.get(trial.plan),
                    "plan": trial.text,
                    "baseline": trial.is_baseline,
                    "cost": trial.cost,
                    "score": name,
                    "seeds": len(values),
                    "mean": statistics.fmean(values),
                    "error": _standard_error(values),
                    **_change(values, reference.get(name), maximise=maximises(name.split()[-1])),
                }
            )
    return rows


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
    pairs = [value - other for value, other in zip(values, reference, strict=True)]
    change, error = statistics.fmean(pairs), _standard_error(pairs)
    if error is None:
        return {"change": change, "interval": None, "verdict": None}
    from scipy.stats import t

    interval = float(t.ppf(0.975, len(pairs) - 1) * error)
    verdict = "better" if (change > 0) == maximise else "worse"
    return {
        "change": change,
        "interval": interval,
        "verdict": verdict if abs(change) > interval else "noise",
    }


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of one kind as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown_text(text: str) -> str:
    """A text for a Markdown table or paragraph that shows as it is, whatever it holds."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return re.sub(r"([\\|`*\[\]$])", r"\\\1", html.escape(line, quote=False))


def cost_text(name: str, value: float | None) -> str:
    """A cost for people: counts to the last digit, seconds to three."""
    if value is None:
        return ""
    return f"{value:.3g}" if name in MEASURED_COSTS else f"{value:,.0f}"


def state_text(trial: TrialRecord) -> str:
    """How a trial stands, in words."""
    if trial.duplicate_of is not None:
        return "repeated"
    if trial.is_withdrawn:
        return "withdrawn"
    if trial.is_over_limit:
        return "over a limit"
    return {"PRUNED": "stopped early", "FAIL": "failed"}.get(
        trial.state.name, trial.state.name.lower()
    )


def curves_of(trials: Sequence[TrialRecord]) -> dict[tuple[str, int], Curve]:
    """Learning curves of the trials' first seeds, by plan and seed; the section `replay` takes
    them.

    The record keeps no time of a validation, so time is taken to pass evenly.
    """
    curves = {}
    for trial in trials:
        if not trial.is_trained or trial.plan is None or not trial.curve:
            continue
        command = trial.commands[0]
        seconds = trial.seconds / max(1, len(trial.losses)) / max(trial.curve)
        points = tuple(Point(n, loss, n * seconds) for n, loss in sorted(trial.curve.items()))
        seed = int(str(value_of(command, "--seed")))
        curves[trial.plan.dumps(), seed] = Curve(points)
    return curves


def reproduction_texts(trial: TrialRecord) -> list[str]:
    """For each seed, the line that trains the trial again and prunes it.

    It has folders of its own, since in those of the trial there is nothing left to do.
    """
    texts = []
    starts = trial.starts or ((),) * len(trial.commands)
    for run, (start, command) in enumerate(zip(starts, trial.commands, strict=True), start=1):
        folder = f"checkpoints/trial-{trial.number}-run-{run}"
        steps = [with_value(command, "--save-dir", folder)]
        if start:
            made = f"{folder}/{START}/{BEST}"
            steps[0] = with_value(steps[0], "--finetune-from-model", made)
            trains = value_of(start, "--save-dir") is not None
            flag, value = ("--save-dir", f"{folder}/{START}") if trains else ("--out", made)
            steps.insert(0, with_value(start, flag, value))
        steps = [
            step
            if value_of(step, TENSORBOARD) is None
            else with_value(step, TENSORBOARD, f"{folder}/tensorboard")
            for step in steps
        ]
        lines = [shell_text(step, trial.threads) for step in steps]
        if trial.pruned:
            lines.append(f"nas-attn prune {folder}/{BEST} --out {folder}/{PRUNED}")
        texts.append(" && ".join(lines))
    return texts


def time_text(trials: Sequence[TrialRecord]) -> str:
    """All training time, with a unit that fits."""
    seconds = sum(trial.seconds for trial in trials)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mark_text(row: dict[Any, Any]) -> str:
    """What sets a row of the front table apart; empty for a plain point of the front."""
    place = "" if row["on_front"] else "within the noise" if row["within_noise"] else "dominated"
    kinds = ("baseline" if row["baseline"] else "", "warm" if row["warm"] else "", place)
    return ", ".join(kind for kind in kinds if kind)


def effective_text(row: dict[Any, Any]) -> str:
    count = row["effective_cost"]
    return "" if pd.isna(count) else f"{count:,}"


def percent_text(row: dict[Any, Any]) -> str:
    change = row.get("cost_change")
    if row["baseline"] or change is None or math.isnan(change):
        return ""
    return f"{change:+.1%}"


def loss_change_text(row: dict[Any, Any]) -> str:
    change = row.get("loss_change")
    if row["baseline"] or change is None or math.isnan(change):
        return ""
    return f"{change:+.4f}"


def retention_text(row: dict[Any, Any]) -> str:
    """How much of the baseline's quality is left, as a share; empty where it has no meaning."""
    share = row.get("retention")
    return "" if row["baseline"] or share is None or math.isnan(share) else f"{share:.1%}"


def price_text(row: dict[Any, Any]) -> str:
    """Change of the loss for each tenth of the cost that is saved; empty where none is."""
    price = row.get("price")
    return "" if row["baseline"] or price is None or math.isnan(price) else f"{price:+.4f}"
