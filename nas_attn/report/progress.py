"""How the hypervolume of a search has grown, against a reference point that was fixed before."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_attn.pareto import dominates, hypervolume
from nas_attn.search.objectives import Objectives
from nas_attn.search.record import TrialRecord
from nas_attn.training.worker import START, read_report

POINTS = 300
"""Places at which a curve is drawn, at most."""
WEAKER = 1.2
"""A weak loss over the baseline's, where nothing is known of an early model."""


@dataclass(frozen=True)
class Reference:
    """The point up to which the hypervolume is measured.

    Args:
        point: the objectives, each better when lower, as `TrialRecord.point` has them.
        words: where it comes from.
    """

    point: tuple[float, ...]
    words: str


@dataclass(frozen=True)
class Progress:
    """A search's hypervolume after each of some trials, as a share of the last.

    Args:
        reference: up to which it is measured.
        trials: how many had ended, stopped and failed ones too.
        spent: updates until then, or seconds where updates are not known.
        unit: of `spent`.
        share: of the final hypervolume.
        final: hypervolume, in the units of the objectives.
    """

    reference: Reference
    trials: tuple[int, ...]
    spent: tuple[float, ...]
    unit: str
    share: tuple[float, ...]
    final: float


def reference_of(trials: Sequence[TrialRecord], objectives: Objectives) -> Reference | None:
    """The baseline's costs, and the score that the baseline had after its first validation.

    None without a trained baseline.
    """
    baseline = next((t for t in trials if t.is_baseline and t.is_trained), None)
    if baseline is None or baseline.point is None or baseline.loss is None:
        return None
    sign = -1.0 if objectives.maximise else 1.0
    first = first_validation(baseline, objectives.loss)
    if first is not None and sign * (first - baseline.loss) > 0:
        return Reference(
            (sign * first, *baseline.point[1:]),
            f"the baseline's costs, and its {objectives.loss} after the first validation "
            f"({first:.4f})",
        )
    weak = baseline.loss / WEAKER if objectives.maximise else baseline.loss * WEAKER
    return Reference(
        (sign * weak, *baseline.point[1:]),
        f"the baseline's costs, and its final {objectives.loss} made worse by a factor of "
        f"{WEAKER} ({weak:.4f})",
    )


def progress_of(trials: Sequence[TrialRecord], objectives: Objectives) -> Progress | None:
    """Follow a search; None without a trained baseline or where nothing is within the reference."""
    reference = reference_of(trials, objectives)
    paid = [trial for trial in trials if trial.counts and (trial.is_trained or trial.seconds)]
    if reference is None or not paid:
        return None
    has_updates = all(trial.updates for trial in paid if trial.is_trained)
    front: list[tuple[float, ...]] = []
    spent, steps = 0.0, []
    marks = {round(i * (len(paid) - 1) / (POINTS - 1)) for i in range(POINTS)}
    for index, trial in enumerate(paid):
        spent += trial.updates if has_updates else trial.seconds
        if trial.is_trained and trial.point is not None:
            _insert(front, trial.point)
        if index in marks:
            steps.append((index + 1, spent, hypervolume(front, reference.point)))
    final = steps[-1][2]
    if final <= 0:
        return None
    counts, costs, volumes = zip(*steps, strict=True)
    return Progress(
        reference=reference,
        trials=counts,
        spent=costs,
        unit="updates" if has_updates else "seconds of training",
        share=tuple(volume / final for volume in volumes),
        final=final,
    )


def _insert(front: list[tuple[float, ...]], point: tuple[float, ...]) -> None:
    """Add a point to what nothing dominates."""
    if any(dominates(other, point) or other == point for other in front):
        return
    front[:] = [other for other in front if not dominates(point, other)]
    bisect.insort(front, point)


def first_validation(baseline: TrialRecord, metric: str, run: Path | None = None) -> float | None:
    """The score of a baseline's first seed after its first validation, before any fine-tuning.

    Args:
        baseline: a trained trial.
        metric: name of the score.
        run: the search's run folder, if it may have been moved since.
    """
    if not any(baseline.starts):
        return baseline.curve[min(baseline.curve)] if baseline.curve else None
    command = baseline.commands[0]
    seed = f"seed-{command[command.index('--seed') + 1]}"
    trial = Path(str(baseline.folder))
    for folder in (trial, *([run / "trials" / trial.name] if run else [])):
        lines = read_report(folder / seed / START)
        if lines and metric in lines[0]["metrics"]:
            return float(lines[0]["metrics"][metric])
    return None
