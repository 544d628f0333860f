"""Searches to compare, read from run folders, and the reference points that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nas_attn.analysis.hypervolume import first_validation, weak_loss
from nas_attn.analysis.trials import Trials
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import UsageError
from nas_attn.literals import parse_count
from nas_attn.pareto import non_dominated

ASK_FOR_REFERENCE = "give a reference with --reference COST,LOSS"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A search to compare, finished or running.

    Args:
        name: Name as it is shown.
        trials: Trials on its record.
        settings: Settings kept with the trials.
        folder: Run folder.
    """

    name: str
    trials: Trials
    settings: dict[str, Any]
    folder: Path

    @property
    def objectives(self) -> Objectives:
        """What it weighs."""
        return self.trials.objectives

    @property
    def trained(self) -> list[TrialRecord]:
        """Trials with a result of their own."""
        return [trial for trial in self.trials.trained if trial.cost is not None]

    @property
    def baseline(self) -> TrialRecord | None:
        """The trained baseline, if there is one."""
        return next((trial for trial in self.trained if trial.is_baseline), None)

    @property
    def points(self) -> list[tuple[float, float]]:
        """First cost and loss of each trained trial, both better when lower."""
        return [point_of(trial) for trial in self.trained]

    @property
    def front(self) -> list[tuple[float, float]]:
        """The points that no other dominates in first cost and loss, from small to large."""
        return sorted(self.points[index] for index in non_dominated(self.points))


@dataclass(frozen=True, kw_only=True)
class ReferencePoint:
    """The point up to which hypervolume counts.

    Args:
        cost: Cost on the objectives' axis.
        loss: Loss as people read it, so high BLEU is good.
        origin: Description of where it comes from.
    """

    cost: float
    loss: float
    origin: str

    def point(self, objectives: Objectives) -> tuple[float, float]:
        """Both better when lower."""
        return self.cost, -self.loss if objectives.maximise else self.loss


def read_searched(store: TrialStore, folder: Path) -> RunSummary:
    """Read what a search has done so far.

    Args:
        store: Trials of the search.
        folder: Run folder of the search, after which it is called.
    """
    return RunSummary(
        name=folder.resolve().name,
        trials=Trials.of(store, folder),
        settings=store.settings(),
        folder=folder,
    )


def parse_reference(text: str) -> ReferencePoint | Literal["first"]:
    """Read a reference: `COST,LOSS`, such as 20M,8.5, or `first`.

    Raises:
        UsageError: the text is none.
    """
    if text == "first":
        return "first"
    cost, _, loss = text.partition(",")
    try:
        number = float(loss)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise UsageError(f"--reference: {text!r} is not COST,LOSS, such as 20M,8.5, nor first")
    amount = parse_count(cost, "--reference")
    return ReferencePoint(cost=float(amount), loss=number, origin="given with --reference")


def reference_of(searches: Sequence[RunSummary]) -> ReferencePoint:
    """The cost of the first search's baseline, and a loss a little worse than the worst on the
    front of all searches together (see `weak_loss`).

    Raises:
        UsageError: the first search's baseline is not trained.
    """
    first = searches[0]
    cost, loss = point_of(_baseline_of(first))
    points = [point for search in searches for point in search.front]
    best = [(points[index][1], points[index][0]) for index in non_dominated(points)]
    weak = weak_loss(best, (loss, cost))
    return ReferencePoint(
        cost=cost,
        loss=-weak if first.objectives.maximise else weak,
        origin=f"cost of the baseline of {first.name}, and the worst loss on the common front made "
        "worse by a tenth of what the front spans",
    )


def early_reference_of(search: RunSummary) -> ReferencePoint:
    """A search's baseline's cost, and the loss of that one's first validation.

    Such a loss does not hang on what searches find, but any plan beats it by far, so that
    hypervolumes hardly differ.

    Raises:
        UsageError: the baseline is not trained, or its first validation is not known.
    """
    baseline = _baseline_of(search)
    weak = first_validation(baseline, search.objectives.metric)
    if weak is None:
        raise UsageError(
            f"the first validation of {search.name}'s baseline is gone: {ASK_FOR_REFERENCE}"
        )
    origin = f"cost and first validation of the baseline of {search.name}"
    return ReferencePoint(cost=float(baseline.cost or 0), loss=weak, origin=origin)


def _baseline_of(search: RunSummary) -> TrialRecord:
    if search.baseline is None:
        raise UsageError(f"the baseline of {search.name} is not trained: {ASK_FOR_REFERENCE}")
    return search.baseline


def point_of(trial: TrialRecord) -> tuple[float, float]:
    """First cost and loss of a trained trial, both better when lower."""
    assert trial.cost is not None and trial.point is not None
    return float(trial.cost), trial.point[0]
