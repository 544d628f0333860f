"""Trials of searches without fairseq, and the same with other losses."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.job import TrialJob
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, make_loop


def searched_trials(
    folder: Path, error: Callable[[TrialJob], str | None] = lambda job: None
) -> Trials:
    """Trials of a search with a budget of 14."""
    loop = make_loop(folder, trials=14)
    FakeExecutor(error=error).run(loop)
    return Trials(loop.store.trials(), OBJECTIVES)


def seeded(trial: TrialRecord, cost: int, *losses: float) -> TrialRecord:
    mean = statistics.fmean(losses)
    return replace(trial, losses=losses, loss=mean, cost=cost, point=(mean, float(cost)))


def compared(
    trials: Trials, warm: list[float], cold: list[float]
) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Trials of a search and of the trainings from scratch, with losses of one's own."""
    done = [trial for trial in trials if trial.is_trained and not trial.is_baseline]
    done.sort(key=lambda trial: trial.cost or 0)
    pairs = list(zip(done, warm, cold, strict=False))
    return (
        [replace(t, is_warm=True, loss=loss, updates=3) for t, loss, _ in pairs],
        [replace(t, loss=loss, updates=30) for t, _, loss in pairs],
    )


MISLEADING = (
    [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
    [7.0, 8.0, 9.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0],
)
"""Losses for `compared` that agree about sizes, and rank plans of a size the wrong way round."""


def confirmed_trials(trials: Trials) -> Trials:
    """Three trials, the baseline first, with three seeds and tests of their own."""
    baseline = replace(
        seeded(trials[0], 200, 1.0, 2.0, 3.0),
        tests=({"bleu": 20.0}, {"bleu": 21.0}, {"bleu": 22.0}),
    )
    other = replace(
        seeded(trials[1], 100, 1.1, 2.1, 3.1),
        tests=({"bleu": 19.0}, {"bleu": 23.0}, {"bleu": 22.0}),
    )
    third = replace(
        seeded(trials[2], 150, 1.0, 2.0, 3.0),
        tests=({"bleu": 24.0}, {"bleu": 25.1}, {"bleu": 25.9}),
    )
    return Trials([baseline, other, third], OBJECTIVES)
