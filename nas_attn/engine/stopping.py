"""When a trial is stopped early: halving by rungs, ranked by all objectives, or by a forecast.

Halving: a trial reaches rung 0 after `first` validations, and every further rung after `factor`
times as many. There it is compared with all that came to the rung before it. Its rank is the number
of trials that dominate it (Fonseca and Fleming 1993), with the loss so far and the exact costs,
which are known from the start; it goes on if fewer than one in `factor` of them have a better rank.
So a trial that nothing dominates always goes on, however large its loss: small models are not
stopped for being small.

Forecast: at every validation the curves of the finished trials tell the best that a trial can still
end with (see `nas_attn.engine.forecast`). It is stopped if a finished trial that costs no more is
as good as that. Costs that are known only after training are left out, and a trial whose vote
decides what it costs goes on.

With both rules the baseline and a trial in its last epoch go on, and neither remembers anything
that is not in the record: trials keep what was decided and by which loss.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nas_attn.engine.config import StoppingConfig
from nas_attn.engine.forecast import forecast_final, misses_allowed


@dataclass(frozen=True, kw_only=True)
class RungDecision:
    """What becomes of a trial at a rung.

    Args:
        validation: Number of validations after which it was made.
        loss: The best up to there.
        dominated_by: Number of trials of the rung that dominate it.
        better: Number of those that are dominated by fewer.
        of: Trials that have come to the rung, itself included.
        goes_on: Whether it is trained on.
    """

    validation: int
    loss: float
    dominated_by: int
    better: int
    of: int
    goes_on: bool

    def to_json(self) -> dict[str, Any]:
        """What the record keeps."""
        return {name: value for name, value in asdict(self).items() if name != "validation"}

    @property
    def reason(self) -> str:
        """Why a trial was stopped, for people."""
        return (
            f"stopped early: dominated by {self.dominated_by} of {self.of} trials at validation "
            f"{self.validation} (rank {self.better + 1})"
        )


class Rung:
    """Points that came so far, each with the number of others that dominate it."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._points = np.empty((0, 0))  # (objectives, room): a rung may hold many thousands
        self._dominators = np.empty(0, dtype=np.int64)
        self._size = 0

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def __len__(self) -> int:
        return self._size

    def add(self, number: int, point: Sequence[float]) -> tuple[int, int]:
        """Add a trial's point, lower being better.

        Returns:
            How many points dominate it, and how many points are dominated by fewer.
        """
        new = np.asarray(point, dtype=float)
        self._make_room(len(new))
        points, dominators = self._points[:, : self._size], self._dominators[: self._size]
        no_worse, no_better = np.ones((2, self._size), dtype=bool)
        for values, value in zip(points, new, strict=True):
            no_worse &= values <= value
            no_better &= values >= value
        equal = no_worse & no_better
        dominators += no_better & ~equal
        mine = int(np.count_nonzero(no_worse) - np.count_nonzero(equal))
        better = int(np.count_nonzero(dominators < mine))
        self._points[:, self._size], self._dominators[self._size] = new, mine
        self._size += 1
        self._numbers.add(number)
        return mine, better

    def _make_room(self, width: int) -> None:
        if self._size < len(self._dominators):
            return
        room = max(64, 2 * self._size)
        points, dominators = np.empty((width, room)), np.empty(room, dtype=np.int64)
        if self._size:
            points[:, : self._size], dominators[: self._size] = self._points, self._dominators
        self._points, self._dominators = points, dominators


class Halving:
    """The rule, with its rungs.

    Args:
        config: First rung and factor.
    """

    def __init__(self, config: StoppingConfig) -> None:
        self.config = config
        self._rungs: dict[int, Rung] = {}

    def is_rung(self, validation: int) -> bool:
        """Whether a trial is looked at after so many validations."""
        rung = self.config.first
        while rung < validation:
            rung *= self.config.factor
        return rung == validation

    def enter(
        self, number: int, validation: int, loss: float, costs: Sequence[float]
    ) -> RungDecision | None:
        """A trial comes to a validation.

        Args:
            number: Number of the trial.
            validation: Number of its validations so far.
            loss: The best so far, better when lower.
            costs: Costs of its plan, in the order of the objectives.

        Returns:
            What becomes of it; None where nothing is decided, or was before.
        """
        if not self.is_rung(validation):
            return None
        rung = self._rungs.setdefault(validation, Rung())
        if number in rung:
            return None
        dominated_by, better = rung.add(number, (loss, *costs))
        among = len(rung)
        goes_on = among < self.config.factor or better * self.config.factor < among
        return RungDecision(
            validation=validation,
            loss=loss,
            dominated_by=dominated_by,
            better=better,
            of=among,
            goes_on=goes_on,
        )


@dataclass(frozen=True, kw_only=True)
class ForecastDecision:
    """Why a trial is stopped by its forecast; losses are better when lower.

    Args:
        validation: Number of validations after which it was stopped.
        loss: The best up to there.
        expected: The final loss that is expected of it.
        best: The best final loss that is possible with the coverage.
        coverage: How surely it ends no better than that.
        finished: Finished trials that the forecast was made from.
        rival: Number of the finished trial that is at least as good and costs no more.
        rival_loss: Final loss of that one.
    """

    validation: int
    loss: float
    expected: float
    best: float
    coverage: float
    finished: int
    rival: int
    rival_loss: float

    @property
    def reason(self) -> str:
        """Why the trial was stopped, for people."""
        return (
            f"stopped early: {self.loss:.4f} at validation {self.validation}, forecast to end at "
            f"{self.expected:.4f}, or {self.best:.4f} at best ({100 * self.coverage:g} % coverage, "
            f"{self.finished} finished trials); trial {self.rival}, which costs no more, has "
            f"{self.rival_loss:.4f}"
        )

    def to_json(self, *, maximise: bool) -> dict[str, Any]:
        """What the record keeps, with losses as the metric has them."""
        kept = {name: value for name, value in asdict(self).items() if name != "validation"}
        if maximise:
            kept |= {name: -kept[name] for name in ("loss", "expected", "best", "rival_loss")}
        return {**kept, "goes_on": False}


@dataclass
class _Finished:
    """Finished trials at one validation; arrays that grow and are copied fast."""

    losses: array[float] = field(default_factory=lambda: array("d"))
    costs: array[float] = field(default_factory=lambda: array("d"))
    finals: array[float] = field(default_factory=lambda: array("d"))


class ForecastRule:
    """The rule, with the finished trials that it learns from.

    Args:
        config: First validation and coverage.
    """

    def __init__(self, config: StoppingConfig) -> None:
        self.config = config
        self._at: dict[int, _Finished] = {}
        self._numbers: list[int] = []
        self._finals = array("d")
        self._costs: list[array[float]] = []

    def add(
        self,
        number: int,
        final: float,
        costs: Sequence[float],
        curve: Sequence[float],
        *,
        since: int = 1,
    ) -> None:
        """A trial has finished.

        Args:
            number: Number of the trial.
            final: Its final loss, better when lower.
            costs: Costs of its plan, in the order of the objectives.
            curve: Losses of its validations, better when lower.
            since: The first validation that is of the model that is left.
        """
        self._numbers.append(number)
        self._finals.append(final)
        self._costs = self._costs or [array("d") for _ in costs]
        for known, cost in zip(self._costs, costs, strict=True):
            known.append(cost)
        best = math.inf
        for validation, loss in enumerate(curve[since - 1 :], start=since):
            best = min(best, loss)
            if math.isfinite(best):
                at = self._at.setdefault(validation, _Finished())
                at.losses.append(best)
                at.costs.append(costs[0])
                at.finals.append(final)

    def judge(
        self, validation: int, loss: float, costs: Sequence[float]
    ) -> ForecastDecision | None:
        """A trial comes to a validation.

        Args:
            validation: Number of its validations so far.
            loss: The best so far, better when lower.
            costs: Costs of its plan, in the order of the objectives; inf where not known yet.

        Returns:
            Why it is stopped; None if it goes on.
        """
        at = self._at.get(validation)
        if validation < self.config.first or at is None or not math.isfinite(loss):
            return None
        count, coverage = len(at.finals), self.config.coverage
        rival = self._rival(costs)
        if rival is None or self._finals[rival] > loss or not misses_allowed(count, coverage):
            return None
        found = forecast_final(
            at.losses, at.costs, at.finals, loss=loss, cost=costs[0], coverage=coverage
        )
        if self._finals[rival] > found.best:
            return None
        return ForecastDecision(
            validation=validation,
            loss=loss,
            expected=found.expected,
            best=found.best,
            coverage=coverage,
            finished=count,
            rival=self._numbers[rival],
            rival_loss=self._finals[rival],
        )

    def _rival(self, costs: Sequence[float]) -> int | None:
        """Place of the best finished trial that costs no more, the first of several."""
        finals = np.array(self._finals)
        for known, cost in zip(self._costs, costs, strict=True):
            finals[np.array(known) > cost] = np.inf
        least = finals.min(initial=np.inf)
        if not np.isfinite(least):
            return None
        places: list[int] = np.flatnonzero(finals == least).tolist()
        return min(places, key=self._numbers.__getitem__)


def was_stopped(rungs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the record says that the rule ended a trial."""
    return any(not decision["goes_on"] for decision in rungs.values())


def is_forecast(kept: Mapping[str, Any]) -> bool:
    """Whether what the record keeps of a decision is of a forecast, not of halving."""
    return "rival" in kept


def reason_of(rungs: Mapping[str, Mapping[str, Any]]) -> str:
    """Why the rule ended a trial, from what the record keeps."""
    for validation, kept in rungs.items():
        if not kept["goes_on"]:
            if is_forecast(kept):
                of_forecast = {name: value for name, value in kept.items() if name != "goes_on"}
                return ForecastDecision(validation=int(validation), **of_forecast).reason
            return RungDecision(validation=int(validation), **kept).reason
    return ""
