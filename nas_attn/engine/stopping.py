"""When a trial is stopped early: halving by rungs, ranked by all objectives.

A trial reaches rung 0 after `first` validations, and every further rung after `factor` times as
many. There it is compared with all that came to the rung before it. Its rank is the number of
trials that dominate it (Fonseca and Fleming 1993), with the loss so far and the exact costs, which
are known from the start; it goes on if fewer than one in `factor` of them have a better rank. So a
trial that nothing dominates always goes on, however large its loss: small models are not stopped
for being small. The baseline and a trial in its last epoch go on as well.

The rule remembers nothing that is not in the record: every trial keeps what was decided and by
which loss, and rungs are filled from that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas_attn.engine.config import StoppingConfig


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


def was_stopped(rungs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the record says that the rule ended a trial."""
    return any(not decision["goes_on"] for decision in rungs.values())


def reason_of(rungs: Mapping[str, Mapping[str, Any]]) -> str:
    """Why the rule ended a trial, from what the record keeps."""
    for validation, kept in rungs.items():
        if not kept["goes_on"]:
            return RungDecision(validation=int(validation), **kept).reason
    return ""
