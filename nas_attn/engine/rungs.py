"""What the stopping rule decides for the trials of a search, whoever runs them."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

from nas_attn.engine import trial_record as fields
from nas_attn.engine.config import StoppingConfig
from nas_attn.engine.stopping import ForecastRule, Halving, is_forecast, was_stopped
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.job import Validation


class Unstopped:
    """The rule `none`, and what the others have in common.

    Args:
        store: Trials of the study.
        config: The stopping rule.
    """

    def __init__(self, store: TrialStore, config: StoppingConfig) -> None:
        self.store = store
        self.config = config
        self._decisions: dict[int, dict[str, dict[str, Any]]] = {}
        self._best: dict[int, float] = {}

    def resume(self, trial: TrialRecord) -> None:
        """Take on what was decided for a trial before it was interrupted."""
        self._decisions[trial.number] = {k: dict(v) for k, v in trial.rungs.items()}

    def leave(self, number: int) -> dict[str, dict[str, Any]]:
        """Forget a trial that has ended; returns what was decided for it, by validations."""
        self._best.pop(number, None)
        return self._decisions.pop(number, {})

    def reach(self, trial: TrialRecord, news: Validation) -> bool:
        """Take in a validation of a trial; returns whether there is something to decide."""
        best = self._best.get(trial.number, math.inf)
        self._best[trial.number] = min(best, self._signed(news.loss))
        return False

    def decide(self, trial: TrialRecord, news: Validation) -> bool:
        """Decide what becomes of a trial, and write that down.

        Returns:
            Whether it goes on.
        """
        return True

    def read(self, mine: Container[int]) -> None:
        """Take in what an earlier driver or another one wrote.

        Args:
            mine: Numbers of this driver's trials.
        """

    def _signed(self, loss: float) -> float:
        return -loss if self.store.objectives.maximise else loss


class Rungs(Unstopped):
    """Halving, knowing which trials of others came to its rungs; arguments as for `Unstopped`."""

    def __init__(self, store: TrialStore, config: StoppingConfig) -> None:
        super().__init__(store, config)
        self._halving = Halving(config)
        self._unread: set[int] = set()
        self._begun = 0

    def reach(self, trial: TrialRecord, news: Validation) -> bool:
        super().reach(trial, news)
        return self._halving.is_rung(news.validation)

    def decide(self, trial: TrialRecord, news: Validation) -> bool:
        number = trial.number
        best = self._best[number]
        decision = self._halving.enter(number, news.validation, best, self._costs(trial))
        kept = self._decisions.setdefault(number, {})
        key = str(news.validation)
        if decision is not None and key not in kept:
            if trial.is_baseline or news.is_last:  # which is compared with, or has nothing to save
                decision = replace(decision, goes_on=True)
            kept[key] = decision.to_json()
            self.store.annotate(number, {fields.RUNGS: kept})
        return key not in kept or bool(kept[key]["goes_on"])

    def read(self, mine: Container[int]) -> None:
        """Enter what others decided; this driver's trials enter themselves."""
        trials = self.store.cached
        self._unread.update(range(self._begun, len(trials)))
        self._begun = len(trials)
        for trial in [trials[number] for number in self._unread]:
            if trial.number in mine:
                continue
            for validation, kept in trial.rungs.items():
                if not is_forecast(kept):
                    reached, loss = int(validation), kept["loss"]
                    self._halving.enter(trial.number, reached, loss, self._costs(trial))
            if trial.state.is_finished():
                self._unread.discard(trial.number)

    def _costs(self, trial: TrialRecord) -> tuple[float, ...]:
        return self.store.objectives.point(0.0, trial.costs)[1:]


class Forecasts(Unstopped):
    """Forecasts, made from all finished trials on record; arguments as for `Unstopped`.

    Only what stops a trial is written down: that it went on is seen from its curve.
    """

    def __init__(self, store: TrialStore, config: StoppingConfig) -> None:
        super().__init__(store, config)
        self._rule = ForecastRule(config)
        self._learnt = 0
        self._decided: dict[int, int] = {}

    def resume(self, trial: TrialRecord) -> None:
        super().resume(trial)
        # Its validations are told again, and more trials may have finished since.
        self._decided[trial.number] = max(trial.curve, default=0)

    def leave(self, number: int) -> dict[str, dict[str, Any]]:
        self._decided.pop(number, None)
        return super().leave(number)

    def reach(self, trial: TrialRecord, news: Validation) -> bool:
        if trial.number not in self._best and news.validation > 1:  # those before were of a vote
            self.store.annotate(trial.number, {fields.SETTLED: news.validation})
        super().reach(trial, news)
        is_new = news.num_updates > self._decided.get(trial.number, 0)
        may_stop = trial.cost_is_exact and not trial.is_baseline and not news.is_last
        return is_new and may_stop and news.validation >= self.config.first

    def decide(self, trial: TrialRecord, news: Validation) -> bool:
        kept = self._decisions.setdefault(trial.number, {})
        if was_stopped(kept):
            return False
        self._learn()
        costs = [trial.costs.get(name, math.inf) for name in self.store.objectives.costs]
        decision = self._rule.judge(news.validation, self._best[trial.number], costs)
        if decision is None:
            return True
        kept[str(news.validation)] = decision.to_json(maximise=self.store.objectives.maximise)
        self.store.annotate(trial.number, {fields.RUNGS: kept})
        return False

    def _learn(self) -> None:
        """Take in the trials that have finished meanwhile."""
        finished = self.store.finished_numbers
        for trial in [self.store.cached[number] for number in finished[self._learnt :]]:
            if trial.is_trained and trial.point is not None:
                final, *costs = trial.point
                says = trial.settled is not None or not trial.pruned
                curve = [self._signed(trial.curve[at]) for at in sorted(trial.curve) if says]
                self._rule.add(trial.number, final, costs, curve, since=trial.settled or 1)
        self._learnt = len(finished)


RULES: dict[str, type[Unstopped]] = {
    "none": Unstopped,
    "halving": Rungs,
    "forecast": Forecasts,
}
"""What decides under each rule."""
