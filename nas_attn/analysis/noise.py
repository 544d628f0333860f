"""How noisy the loss of one trial is, by how high that loss is."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from nas_attn.engine.trial_record import TrialRecord, front

LEAST_DEGREES = 10
"""Degrees of freedom that an estimate is made of, as far as there are so many."""
FAR = 3.0
"""Ratio of two losses beyond which the noise of one says nothing of the other's."""


@dataclass(frozen=True)
class NoiseLevel:
    """The noise of one trial.

    Args:
        error: Standard error of its mean loss over its seeds.
        degrees: Degrees of freedom of that estimate.
    """

    error: float
    degrees: int


@dataclass(frozen=True)
class Noise:
    """Standard errors of trials' losses. Poor models scatter more than good ones, so each loss has
    the noise of the trials whose losses are nearest to it.

    Args:
        losses: Losses of the trials with several seeds, ascending; at least one.
        variances: Variance of the loss over the seeds of each.
        seeds: Number of seeds of each.
    """

    losses: tuple[float, ...]
    variances: tuple[float, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, trials: Sequence[TrialRecord]) -> Noise | None:
        """The noise of a study's trials; None where none has several seeds."""
        repeated = [trial for trial in trials if trial.is_trained and len(trial.losses) > 1]
        if not repeated:
            return None
        repeated.sort(key=lambda trial: statistics.fmean(trial.losses))
        return cls(
            losses=tuple(statistics.fmean(trial.losses) for trial in repeated),
            variances=tuple(statistics.variance(trial.losses) for trial in repeated),
            seeds=tuple(len(trial.losses) for trial in repeated),
        )

    @property
    def pooled(self) -> float:
        """Standard error of one trial's loss, of whatever level."""
        return self._level(range(len(self.losses))).error

    def at(self, loss: float) -> NoiseLevel:
        """The noise of a trial of such a loss.

        The variance over seeds is averaged over the trials nearest in loss that have
        `LEAST_DEGREES` degrees of freedom together, or over all if there are fewer. Trials whose
        loss is more than `FAR` times as large or as small do not count, but for the nearest where
        there is no other.
        """
        first, last = self._near(loss)
        high = min(max(bisect.bisect_left(self.losses, loss), first), last)
        low, degrees = high, 0
        while degrees < LEAST_DEGREES and high - low < last - first:
            is_below = high == last or (
                low > first and loss - self.losses[low - 1] <= self.losses[high] - loss
            )
            low, high = (low - 1, high) if is_below else (low, high + 1)
            degrees += self.seeds[low if is_below else high - 1] - 1
        return self._level(range(low, high))

    def _near(self, loss: float) -> tuple[int, int]:
        """Places of the losses, from the first to before the last, that say something of this."""
        ends = sorted((loss / FAR, loss * FAR))
        first = bisect.bisect_left(self.losses, ends[0])
        last = bisect.bisect_right(self.losses, ends[1])
        if first == last:
            place = min(range(len(self.losses)), key=lambda n: abs(self.losses[n] - loss))
            return place, place + 1
        return first, last

    def margin(self, one: float, other: float) -> float:
        """Half the 95 % interval of the difference of two trials of such losses (Student's)."""
        first, second = self.at(one), self.at(other)
        quantile = _quantile(min(first.degrees, second.degrees))
        return float(quantile * (first.error**2 + second.error**2) ** 0.5)

    def _level(self, places: Sequence[int]) -> NoiseLevel:
        degrees = [self.seeds[place] - 1 for place in places]
        variance = sum(
            degree * self.variances[place] for degree, place in zip(degrees, places, strict=True)
        ) / sum(degrees)
        seeds = statistics.fmean(self.seeds[place] for place in places)
        return NoiseLevel(float((variance / seeds) ** 0.5), sum(degrees))


@cache
def _quantile(degrees: int) -> float:
    """Student's, that 2.5 % lie beyond."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def undecided(trials: Sequence[TrialRecord], noise: Noise | None) -> set[int]:
    """Numbers of the trials off the front that nothing dominates beyond the noise.

    A trial dominates another beyond the noise if it costs no more, and its loss is better by more
    than the 95 % interval of the difference of two means, with the noise that trials of their
    losses have. Without a known noise there are none.

    Args:
        trials: Trials of the study.
        noise: Noise of its trials.
    """
    if noise is None:
        return set()
    best = [trial for trial in front(trials) if trial.point is not None]
    on_front = {trial.number for trial in best}
    found = set()
    for trial in trials:
        if trial.number in on_front or not trial.is_trained or trial.point is None:
            continue
        if not any(_clearly_dominates(better, trial, noise) for better in best):
            found.add(trial.number)
    return found


def _clearly_dominates(better: TrialRecord, trial: TrialRecord, noise: Noise) -> bool:
    assert better.point is not None and trial.point is not None
    ahead = trial.point[0] - better.point[0]
    if ahead <= 0 or any(a > b for a, b in zip(better.point[1:], trial.point[1:], strict=True)):
        return False
    return ahead > noise.margin(better.loss or 0.0, trial.loss or 0.0)


def standard_error(losses: Sequence[float]) -> float | None:
    """Standard error of the mean over seeds; None with one."""
    if len(losses) < 2:
        return None
    return float(statistics.stdev(losses) / len(losses) ** 0.5)
