"""The answer of a search: its smallest model that is not clearly worse than the baseline.

Where trials have one seed each, nobody knows how far noise reaches: what counts then is whether the
loss is within `TOLERANCE` of the baseline's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord

TOLERANCE = 0.01
"""Share of the baseline's score that a model may lose where no noise is known: a convention."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A trial's loss against the baseline's.

    Args:
        change: Loss less the baseline's.
        interval: Half of the 95 % interval of that change; None where the noise is unknown.
        seeds: Number of fresh seeds of a confirmation; 0 for the search's own result.
        is_worse: Whether it is worse beyond that interval; without one, beyond `TOLERANCE`.
    """

    change: float
    interval: float | None
    seeds: int
    is_worse: bool


def changes_of(
    trials: Trials, confirmed: Sequence[Mapping[str, Any]] = ()
) -> tuple[dict[int, Change], dict[int, Change]]:
    """Changes against the baseline by the search, and by its confirmation, each by trial number.

    Args:
        trials: Trials of the study.
        confirmed: Rows of `confirmation_rows`, if there was a confirmation.
    """
    return _searched(trials), _confirmed(trials, confirmed)


def smallest_good(
    trials: Trials, searched: Mapping[int, Change], confirmed: Mapping[int, Change]
) -> TrialRecord | None:
    """The trial of least cost, below the baseline's, whose loss is not clearly worse.

    It is one of those confirmed if there are any, else one of the front. None without a trained
    baseline, and where every smaller trial is clearly worse.

    Args:
        trials: Trials of the study.
        searched: Changes by the search, from `changes_of`.
        confirmed: Changes by its confirmation, likewise.
    """
    baseline = trials.baseline
    if baseline is None or baseline.cost is None:
        return None
    changes = confirmed or searched
    numbers = set(confirmed) or {trial.number for trial in trials.front}
    good = [
        trial
        for trial in trials.trained
        if trial.number in numbers
        and trial.cost is not None
        and trial.cost < baseline.cost
        and trial.number in changes
        and not changes[trial.number].is_worse
    ]
    return min(good, key=lambda trial: (trial.cost or 0, trial.number), default=None)


def _searched(trials: Trials) -> dict[int, Change]:
    baseline, noise = trials.baseline, trials.noise
    if baseline is None or baseline.loss is None:
        return {}
    found = {}
    for trial in trials.trained:
        if trial.loss is None or trial is baseline:
            continue
        change = trial.loss - baseline.loss
        margin = None if noise is None else noise.margin(trial.loss, baseline.loss)
        found[trial.number] = Change(
            change=change,
            interval=margin,
            seeds=0,
            is_worse=_is_worse(change, margin, trials),
        )
    return found


def _confirmed(trials: Trials, rows: Sequence[Mapping[str, Any]]) -> dict[int, Change]:
    score = f"validation {trials.objectives.metric}"
    return {
        row["trial"]: Change(
            change=row["change"],
            interval=row["interval"],
            seeds=row["seeds"],
            is_worse=_is_worse(row["change"], row["interval"], trials),
        )
        for row in rows
        if row["score"] == score and row["trial"] is not None and row["change"] is not None
    }


def _is_worse(change: float, interval: float | None, trials: Trials) -> bool:
    lost = -change if trials.objectives.maximise else change
    if interval is not None:
        return lost > interval
    baseline = trials.baseline
    score = None if baseline is None else baseline.loss
    return lost > TOLERANCE * abs(score or 0.0)
