"""A study's trials and its front as pandas tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pandas as pd

from nas_attn.analysis.noise import Noise, standard_error, undecided
from nas_attn.analysis.reproduction import reproduction_texts
from nas_attn.engine.ladder import chain_updates
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.measures import MEASURED_COSTS


def trials_table(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row for each trial.

    Columns: trial, state, baseline, warm (started from the baseline), on_front, within_noise (off
    the front, but nothing dominates it beyond the noise), plan, cost (on the axis of the
    objectives), cost_certain (whether it was known before training), effective_cost (if it counts
    parameters, those of them that act), every cost by name, loss (mean over seeds), loss_std (over
    seeds), loss_error (standard error of the mean), noise (standard error of trials of such a
    loss), seeds, seconds, updates, attempts (continued after a fault), duplicate_of, failure (its
    kind), reason, command (of the first seed), folder; where plans start from larger ones, parent
    (the trial whose model it started from) and chain_updates (of fine-tuning, by it and those that
    its model came from); and where trainings had GPUs, gpu_memory (the most that a process of
    theirs took, in MiB).
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
            "cost_certain": trial.cost_is_exact,
            "effective_cost": trial.effective,
            **{name: trial.costs.get(name) for name in names},
            "loss": trial.loss,
            "loss_std": statistics.stdev(trial.losses) if len(trial.losses) > 1 else None,
            "loss_error": standard_error(trial.losses),
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
    chains = chain_updates(trials)
    if chains:
        table["parent"] = [trial.parent for trial in trials]
        table["chain_updates"] = [chains.get(trial.number) for trial in trials]
        whole += ["parent", "chain_updates"]
    if any("gpu" in trial.memory for trial in trials):
        table["gpu_memory"] = [trial.memory.get("gpu") for trial in trials]
    return table.astype(dict.fromkeys(whole, "Int64")) if rows else table


def front_table(trials: Sequence[TrialRecord], objectives: Objectives) -> pd.DataFrame:
    """The front, what is within its noise, and the baseline, from small to large.

    The baseline has a row even if it is dominated, as `on_front` says.

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
    for name in ("parent", "chain_updates", "gpu_memory"):
        if name in chosen:
            chosen[name] = chosen.pop(name)  # at the end, where new columns go
    return chosen
