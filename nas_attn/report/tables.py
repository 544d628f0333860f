"""A study's trials and front as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pandas as pd

from nas_attn.attention.counting import ModelSize
from nas_attn.search.record import TrialRecord, front
from nas_attn.training.arguments import reproduction, shell_text
from nas_attn.training.worker import BEST, PRUNED


def noise_of(trials: Sequence[TrialRecord]) -> float | None:
    """Standard error of one trial's loss, pooled over the trials; None with one seed.

    The variance over seeds is averaged over trials and divided by the number of seeds of a trial.
    """
    repeated = [trial for trial in trials if trial.is_trained and len(trial.losses) > 1]
    if not repeated:
        return None
    variance = statistics.fmean(statistics.variance(trial.losses) for trial in repeated)
    seeds = statistics.fmean(len(trial.losses) for trial in repeated)
    return float((variance / seeds) ** 0.5)


def trials_table(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row for each trial.

    Columns: trial, state, baseline, on_front, plan, parameters (the objective),
    parameters_certain (whether they were known before training), effective_parameters (those of
    them that act), attention, non_embedding, total, effective (see `ModelSize`), loss (mean over
    seeds), loss_std (over seeds), seeds, seconds, duplicate_of, reason, command (of the first
    seed), folder.
    """
    on_front = {trial.number for trial in front(list(trials))}
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "baseline": trial.is_baseline,
            "on_front": trial.number in on_front,
            "plan": trial.text,
            "parameters": trial.parameters,
            "parameters_certain": trial.certain,
            "effective_parameters": trial.effective,
            **dict.fromkeys(ModelSize._fields),
            **({} if trial.size is None else trial.size._asdict()),
            "loss": trial.loss,
            "loss_std": statistics.stdev(trial.losses) if len(trial.losses) > 1 else None,
            "seeds": len(trial.losses),
            "seconds": trial.seconds,
            "duplicate_of": trial.duplicate_of,
            "reason": trial.reason,
            "command": next(iter(reproduction_texts(trial)), ""),
            "folder": trial.folder,
        }
        for trial in trials
    ]
    whole = ["parameters", "effective_parameters", *ModelSize._fields, "duplicate_of"]
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(whole, "Int64")) if rows else table


def front_table(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """The front and the baseline, from small to large, with differences to the baseline.

    The baseline has a row even if it is dominated; `on_front` tells.

    Columns: those of `trials_table`, and loss_change and parameters_change (a fraction) against the
    baseline; empty if the baseline is not complete.
    """
    table = trials_table(trials)
    if table.empty:
        return table
    baseline = next((t for t in trials if t.is_baseline and t.is_trained), None)
    number = None if baseline is None else baseline.number
    chosen = table[table["on_front"] | (table["trial"] == number)]
    chosen = chosen.sort_values("parameters").reset_index(drop=True)
    if baseline is not None and baseline.loss is not None and baseline.parameters is not None:
        chosen["loss_change"] = chosen["loss"] - baseline.loss
        chosen["parameters_change"] = chosen["parameters"] / baseline.parameters - 1
    return chosen


def reproduction_texts(trial: TrialRecord) -> list[str]:
    """For each seed, the line that trains the trial again, into a folder of its own, and prunes."""
    texts = []
    for run, command in enumerate(trial.commands, start=1):
        folder = f"checkpoints/trial-{trial.number}-run-{run}"
        text = shell_text(reproduction(command, folder), trial.threads)
        if trial.pruned:
            text += f" && nas-attn prune {folder}/{BEST} --out {folder}/{PRUNED}"
        texts.append(text)
    return texts
