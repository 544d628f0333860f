"""Learning curves of a study's trials."""

from __future__ import annotations

from collections.abc import Sequence

from nas_attn.curves import Curve, Point
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.fairseq_tools.commands import value_of


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
