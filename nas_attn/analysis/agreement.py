"""Whether trials that started warm come in the order that they have when trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.rank_agreement import (
    LEAST_COUNT,
    LEAST_OVERALL,
    LEAST_WITHIN,
    RankAgreement,
    rank_agreement,
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A plan that was trained both ways.

    Args:
        trial: Number of the warm trial.
        plan: Plan of both, in words.
        cost: Cost on the axis of the objectives.
        warm: Loss of the warm trial.
        cold: Loss of the training from scratch.
    """

    trial: int
    plan: str
    cost: int
    warm: float
    cold: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The rank agreement of warm and cold losses.

    Args:
        pairs: Compared trials, from small to large.
        ranks: Agreement of the ranks of their losses.
        seconds: Time that the cold trainings took, in seconds.
        updates: Updates of the cold trainings together.
    """

    pairs: tuple[Pair, ...]
    ranks: RankAgreement
    seconds: float
    updates: int

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.ranks.is_guide:
            return f"Warm trials come in nearly the order of cold ones: {self.ranks}"
        return (
            f"The order of warm trials misleads here: {self.ranks}, where at least "
            f"{LEAST_OVERALL:.2f} and {LEAST_WITHIN:.2f} are wanted. Believe the front only once "
            "it is confirmed, or fine-tune for longer (search.warm_start.fraction)"
        )


def spread_evenly(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Of the trained warm trials, so many, spread over the cost axis by rank."""
    warm = [trial for trial in trials if trial.is_warm and trial.is_trained]
    warm.sort(key=lambda trial: (trial.cost or 0, trial.number))
    if len(warm) <= count:
        return warm
    return [warm[round(place * (len(warm) - 1) / (count - 1))] for place in range(count)]


def agreement_of(warm: Sequence[TrialRecord], cold: Sequence[TrialRecord]) -> Agreement | None:
    """Compare warm trials with trainings of the same plans from scratch; None if there are few.

    Args:
        warm: Trials of the search.
        cold: Trials that were trained from scratch.
    """
    by_plan = {trial.plan: trial for trial in cold if trial.is_trained}
    pairs = [
        Pair(
            trial=trial.number,
            plan=trial.text,
            cost=trial.cost or 0,
            warm=trial.loss or 0.0,
            cold=by_plan[trial.plan].loss or 0.0,
        )
        for trial in warm
        if trial.is_warm and trial.is_trained and trial.plan in by_plan
    ]
    if len(pairs) < LEAST_COUNT:
        return None
    pairs.sort(key=lambda pair: (pair.cost, pair.trial))
    sizes, warm_losses, cold_losses = zip(*((p.cost, p.warm, p.cold) for p in pairs), strict=True)
    return Agreement(
        pairs=tuple(pairs),
        ranks=rank_agreement(sizes, warm_losses, cold_losses),
        seconds=sum(trial.seconds for trial in cold),
        updates=sum(trial.updates for trial in cold),
    )
