"""What is known of an exported model: how good it is, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_attn.analysis.noise import standard_error
from nas_attn.analysis.trials import Trials
from nas_attn.analysis.verdict import Change, changes_of
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import UsageError
from nas_attn.report.formatting import cost_text, cost_words

BEST = "best"


@dataclass(frozen=True, kw_only=True)
class ChosenSeed:
    """The training of a trial that is exported.

    Args:
        seed: Seed of the training.
        place: Its place among the trial's seeds.
        loss: Its validation score; None if the record lacks it.
        how: Reason why it was taken, in words.
    """

    seed: int
    place: int
    loss: float | None
    how: str


def choose_seed(
    trial: TrialRecord, seeds: Sequence[int], wanted: str | int | None, *, maximise: bool
) -> ChosenSeed:
    """Choose the training of a trial that stands for it.

    Args:
        trial: A trained trial.
        seeds: Seeds of the study.
        wanted: A seed, `best`, or None for the one whose score is nearest the mean; of several as
            near, the first.
        maximise: Whether higher scores are better.

    Raises:
        UsageError: The trial has no such seed.
    """
    losses = trial.losses[: len(seeds)]
    if wanted not in (None, BEST):
        if str(wanted) not in map(str, seeds):
            known = ", ".join(map(str, seeds))
            raise UsageError(f"trial {trial.number} has no seed {wanted}; seeds: {known}, or best")
        place, how = [str(seed) for seed in seeds].index(str(wanted)), "as asked for"
    elif len(losses) < 2:
        place, how = 0, "its only seed" if len(seeds) == 1 else "its first seed"
    elif wanted == BEST:
        place = losses.index(max(losses) if maximise else min(losses))
        how = f"the best of {len(losses)} seeds"
    else:
        mean = statistics.fmean(losses)
        # What rounding alone sets apart is as near.
        distances = [round(abs(loss - mean), 9) for loss in losses]
        place = distances.index(min(distances))
        how = f"nearest the mean of {len(losses)} seeds"
    loss = losses[place] if place < len(losses) else None
    return ChosenSeed(seed=seeds[place], place=place, loss=loss, how=how)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score on the test set, over the fresh seeds of a confirmation.

    Args:
        name: Name of the score, such as bleu.
        mean: Mean over the seeds.
        interval: Half of its 95 % interval (Student's); None with one seed.
        seeds: Number of seeds.
    """

    name: str
    mean: float
    interval: float | None
    seeds: int

    def __str__(self) -> str:
        interval = "" if self.interval is None else f" ±{self.interval:.4f}"
        return f"{self.name} {self.mean:.4f}{interval}"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """How good a trial is, by the search and by its confirmation.

    Args:
        trial: The trial.
        metric: Name of the validation score.
        cost_name: Name of the study's first cost.
        seed: Training that is exported.
        mean: Mean of the score over the trial's seeds.
        error: Standard error of that mean; None with one seed.
        noise: Standard error that trials of such a score have; None if it is unknown.
        baseline: The baseline, if it is trained.
        change: Score and cost against the baseline's, by the search; None without a baseline.
        confirmed: The same by fresh seeds; None if it was not confirmed.
        tests: Scores on the test set by fresh seeds.
        maximise: Whether higher scores are better.
    """

    trial: TrialRecord
    metric: str
    cost_name: str
    seed: ChosenSeed
    mean: float
    error: float | None
    noise: float | None
    baseline: TrialRecord | None
    change: Change | None
    confirmed: Change | None
    tests: tuple[Score, ...]
    maximise: bool

    @classmethod
    def of(
        cls,
        trial: TrialRecord,
        trials: Trials,
        seed: ChosenSeed,
        confirmed: Sequence[Mapping[str, Any]] = (),
    ) -> ModelFacts:
        """Gather them.

        Args:
            trial: A trained trial.
            trials: Trials of its study.
            seed: Training that is exported.
            confirmed: Rows of `confirmation_rows`, if there was a confirmation.
        """
        assert trial.loss is not None  # of every trained trial
        searched, fresh = changes_of(trials, confirmed)
        noise = trials.noise
        return cls(
            trial=trial,
            metric=trials.objectives.metric,
            cost_name=trials.objectives.primary_cost,
            seed=seed,
            mean=trial.loss,
            error=standard_error(trial.losses),
            noise=None if noise is None else noise.at(trial.loss).error,
            baseline=trials.baseline,
            change=searched.get(trial.number),
            confirmed=fresh.get(trial.number),
            tests=_test_scores(trial, confirmed),
            maximise=trials.objectives.maximise,
        )

    @property
    def is_baseline(self) -> bool:
        return self.baseline is not None and self.baseline.number == self.trial.number

    @property
    def is_confirmed(self) -> bool:
        """Whether fresh seeds say something of this trial."""
        return self.confirmed is not None or bool(self.tests)

    @property
    def comparison(self) -> str:
        """Score and cost, and how they compare with the baseline's, as a sentence."""
        axis, cost = cost_words(self.cost_name), self.trial.cost
        has = f"validation {self.metric} {self.mean:.4f} with {cost_text(self.cost_name, cost)}"
        has += f" {axis}"
        if self.is_baseline:
            return f"{has}; it is the multi-head baseline"
        if self.change is None or self.baseline is None or not self.baseline.cost:
            return f"{has}; the baseline is not trained, so there is nothing to compare it with"
        return (
            f"{has}; the baseline has {self.baseline.loss:.4f} with {self.baseline.cost:,}: "
            f"{self._change_text(self.change)} for {(cost or 0) / self.baseline.cost - 1:+.1%}"
        )

    @property
    def seed_text(self) -> str:
        """Which training is exported, and how its trial's trainings scatter, as a phrase."""
        own = "" if self.seed.loss is None else f", with {self.seed.loss:.4f}"
        text = f"seed {self.seed.seed}{own} ({self.seed.how})"
        if self.error is not None:
            text += f"; the trial's mean is {self.mean:.4f}, its standard error {self.error:.4f}"
        if self.noise is not None:
            text += f", the noise of trials of such a score {self.noise:.4f}"
        return text

    @property
    def confirmation_text(self) -> str | None:
        """What fresh seeds say, as a phrase; None if there was no confirmation of this trial."""
        if not self.is_confirmed:
            return None
        parts = []
        if self.confirmed is not None:
            change = self._change_text(self.confirmed)
            parts.append(f"validation {self.metric} against the baseline {change}")
        if self.tests:
            scores = ", ".join(map(str, self.tests))
            parts.append(f"on the test set {scores} (mean, and half of its 95 % interval)")
        seeds = self.confirmed.seeds if self.confirmed is not None else self.tests[0].seeds
        return f"confirmed by {seeds} fresh seeds: {'; '.join(parts)}"

    def _change_text(self, change: Change) -> str:
        is_better = (change.change > 0) == self.maximise
        verdict = "the same" if change.change == 0 else "better" if is_better else "worse"
        if change.interval is None:
            return f"{change.change:+.4f} ({verdict})"
        if abs(change.change) <= change.interval:
            verdict = "no clear difference"
        return f"{change.change:+.4f} ±{change.interval:.4f} (95 % interval; {verdict})"


def _test_scores(trial: TrialRecord, rows: Sequence[Mapping[str, Any]]) -> tuple[Score, ...]:
    own = [r for r in rows if r["trial"] == trial.number and r["score"].startswith("test ")]
    return tuple(
        Score(
            name=row["score"].removeprefix("test "),
            mean=row["mean"],
            interval=_half_interval(row["error"], row["seeds"]),
            seeds=row["seeds"],
        )
        for row in own
    )


def _half_interval(error: float | None, count: int) -> float | None:
    if error is None or count < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1) * error)
