"""What a page recommends to confirm, and what that costs."""

from __future__ import annotations

import shlex
from typing import Any

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.report.context import ReportContext
from nas_attn.report.formatting import duration_text

ENOUGH_SEEDS = 3
"""The fewest of which the spread of a difference says something."""


def confirmation_advice(
    trials: Trials, answer: TrialRecord | None, context: ReportContext
) -> dict[str, Any]:
    """The command that confirms the answer, or without one the front, and what it costs in words.

    Args:
        trials: Trials of the study.
        answer: Trial that the page names first.
        context: Everything else that a report says.

    Returns:
        `command` (empty where no command finds the study), `what` is trained, its `price`, and the
        `whole` front's price; empty where that is the same.
    """
    if not context.study:
        return {"command": ""}
    points = [trial for trial in trials.front if not trial.is_baseline]
    command, what = ["nas-attn", "confirm", *context.study], "the front and the baseline"
    whole = price = _price(1 + len(points), trials.baseline)
    if answer is not None and not answer.is_baseline:
        command += ["--trial", str(answer.number)]
        what, price = f"trial {answer.number} and the baseline", _price(2, trials.baseline)
    return {
        "command": shlex.join([*command, "--seeds", str(ENOUGH_SEEDS)]),
        "what": what,
        "price": price,
        "whole": "" if whole == price else whole,
        "seeds": ENOUGH_SEEDS,
    }


def _price(plans: int, baseline: TrialRecord | None) -> str:
    """Trainings from scratch, and how long they take if each takes as long as the baseline's."""
    trainings = ENOUGH_SEEDS * plans
    if baseline is None or not baseline.seconds:
        return f"{trainings} trainings"
    seconds = trainings * baseline.seconds / max(1, len(baseline.losses))
    return f"{trainings} trainings, about {duration_text(seconds)} one after another"
