"""How the hypervolume of a search has grown, up to one reference point."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_attn.analysis.trials import Trials
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import TrialFileError
from nas_attn.fairseq_tools.commands import value_of
from nas_attn.pareto import dominates, hypervolume
from nas_attn.trials.layout import START
from nas_attn.validation_log import read_report

logger = logging.getLogger(__name__)

POINTS = 300
"""Places at which a curve is drawn, at most."""
SLACK = 0.1
"""The tenth by which a reference is worse than what it is taken from."""
WEAKER = 1.2
"""A weak loss over the baseline's, where a front is one point."""


@dataclass(frozen=True)
class CurveReference:
    """The point up to which the hypervolume is measured.

    Args:
        point: The objectives, each better when lower, as `TrialRecord.point` has them.
        words: Description of where it comes from.
    """

    point: tuple[float, ...]
    words: str


@dataclass(frozen=True)
class HypervolumeCurve:
    """A search's hypervolume after each of some trials, as a share of the last.

    Args:
        reference: Point up to which it is measured.
        trials: Numbers of trials that had ended, stopped and failed ones too.
        spent: Updates until then, or seconds where updates are not known.
        unit: Unit of `spent`.
        share: Share of the final hypervolume.
        final: Hypervolume, in the units of the objectives.
    """

    reference: CurveReference
    trials: tuple[int, ...]
    spent: tuple[float, ...]
    unit: str
    share: tuple[float, ...]
    final: float


def reference_of(trials: Trials) -> CurveReference | None:
    """The baseline's costs, and a loss a little worse than the baseline's; None without it.

    The loss is fixed once the baseline is trained, so that what the search finds later cannot move
    it: the first of these within which a smaller trial lies, since any plan would beat a wider one
    and the first trials would have nearly all of the hypervolume:

    1. the baseline's loss, made worse by a tenth of it;
    2. the same, made worse by a tenth of what the baseline's training gained after its first
       validation.

    Where no trial lies within either, it is that of `weak_loss`, which depends on the front.
    """
    baseline, objectives = trials.baseline, trials.objectives
    if baseline is None or baseline.point is None:
        return None
    points = [trial.point for trial in trials.trained if trial.point]
    costs = baseline.point[1:]
    for weak, words in _fixed_losses(baseline):
        words = (
            f"the baseline's {objectives.metric} made worse by {words}, fixed once it is trained"
        )
        point = (weak, *costs)
        if any(all(a < b for a, b in zip(p, point, strict=True)) for p in points):
            break
    else:
        weak = weak_loss([t.point for t in trials.front if t.point], baseline.point)
        words = (
            f"the worst {objectives.metric} on the front made worse by a tenth of what the front "
            "spans, as no smaller trial is near the baseline's"
        )
    shown = -weak if objectives.maximise else weak
    return CurveReference((weak, *costs), f"the baseline's costs, and {words} ({shown:.4f})")


def _fixed_losses(baseline: TrialRecord) -> list[tuple[float, str]]:
    """Losses that the baseline alone settles, better when lower, and by what each is worse."""
    assert baseline.point is not None
    own = baseline.point[0]
    losses = [(own + SLACK * abs(own), "a tenth")]
    if len(baseline.curve) > 1:
        gain = abs(baseline.curve[min(baseline.curve)] - baseline.curve[max(baseline.curve)])
        losses.append((own + SLACK * gain, "a tenth of what its training gained"))
    return losses


def weak_loss(front: Sequence[Sequence[float]], baseline: Sequence[float]) -> float:
    """The loss up to which hypervolume counts.

    It is the worst on the front, made worse by a tenth of what the front spans, so that the whole
    front counts and the first trials have not nearly all of it: a loss that any plan beats by far,
    such as an early one of the baseline, would give them that.

    Args:
        front: Points of loss and costs, each better when lower; one at least.
        baseline: Point of the baseline, likewise.
    """
    # What costs more than the baseline lies beyond the reference.
    losses = [p[0] for p in front if all(a <= b for a, b in zip(p[1:], baseline[1:], strict=True))]
    losses = losses or [baseline[0]]
    span = max(losses) - min(losses)
    return max(losses) + (SLACK * span if span > 0 else (WEAKER - 1.0) * abs(max(losses)))


def progress_of(trials: Trials, reference: CurveReference | None = None) -> HypervolumeCurve | None:
    """Follow a search; None without a trained baseline or where nothing is within the reference.

    Args:
        trials: Trials of the search.
        reference: Reference point; None takes that of these trials.
    """
    reference = reference or reference_of(trials)
    paid = [trial for trial in trials if trial.uses_budget and (trial.is_trained or trial.seconds)]
    if reference is None or not paid:
        return None
    has_updates = all(trial.updates for trial in paid if trial.is_trained)
    best: list[tuple[float, ...]] = []
    spent, steps = 0.0, []
    marks = {round(i * (len(paid) - 1) / (POINTS - 1)) for i in range(POINTS)}
    for index, trial in enumerate(paid):
        spent += trial.updates if has_updates else trial.seconds
        if trial.is_trained and trial.point is not None:
            _insert(best, trial.point)
        if index in marks:
            steps.append((index + 1, spent, hypervolume(best, reference.point)))
    final = steps[-1][2]
    if final <= 0:
        return None
    counts, costs, volumes = zip(*steps, strict=True)
    return HypervolumeCurve(
        reference=reference,
        trials=counts,
        spent=costs,
        unit="updates" if has_updates else "seconds of training",
        share=tuple(volume / final for volume in volumes),
        final=final,
    )


def growth(points: Sequence[tuple[float, ...]], reference: Sequence[float]) -> list[float]:
    """Hypervolume of the first point, of the first two, and so on."""
    front: list[tuple[float, ...]] = []
    volumes = []
    for point in points:
        _insert(front, point)
        volumes.append(hypervolume(front, reference))
    return volumes


def _insert(front: list[tuple[float, ...]], point: tuple[float, ...]) -> None:
    """Add a point to what nothing dominates."""
    if any(dominates(other, point) or other == point for other in front):
        return
    front[:] = [other for other in front if not dominates(point, other)]
    bisect.insort(front, point)


def first_validation(baseline: TrialRecord, metric: str) -> float | None:
    """The score of a baseline's first seed after its first validation, before any fine-tuning.

    Args:
        baseline: A trained trial.
        metric: Name of the score.
    """
    if not any(baseline.starts):
        return baseline.curve[min(baseline.curve)] if baseline.curve else None
    seed = f"seed-{value_of(baseline.commands[0], '--seed')}"
    try:
        lines = read_report(Path(str(baseline.folder)) / seed / START)
    except TrialFileError as error:  # what was found before is reported all the same
        logger.warning("%s", error)
        return None
    if lines and metric in lines[0]["metrics"]:
        return float(lines[0]["metrics"][metric])
    return None
