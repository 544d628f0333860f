"""The rungs of a search: what the stopping rule decides for its trials, whoever runs them."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

from nas_attn.engine import trial_record as fields
from nas_attn.engine.config import StoppingConfig
from nas_attn.engine.stopping import Halving
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.job import Validation


class Rungs:
    """Decides for the trials of one driver, knowing what others decided for theirs.

    Args:
        store: Trials of the study.
        config: The stopping rule.
    """

    def __init__(self, store: TrialStore, config: StoppingConfig) -> None:
        self.store = store
        self._halving = Halving(config)
        self._decisions: dict[int, dict[str, dict[str, Any]]] = {}
        self._best: dict[int, float] = {}
        self._unread: set[int] = set()
        self._begun = 0

    def resume(self, trial: TrialRecord) -> None:
        """Take on what was decided for a trial before it was interrupted."""
        self._decisions[trial.number] = {k: dict(v) for k, v in trial.rungs.items()}

    def leave(self, number: int) -> dict[str, dict[str, Any]]:
        """Forget a trial that has ended; returns what was decided for it, by validations."""
        self._best.pop(number, None)
        return self._decisions.pop(number, {})

    def reach(self, number: int, news: Validation) -> bool:
        """Take in a validation of a trial; returns whether it is on a rung."""
        self._best[number] = min(self._best.get(number, math.inf), self._sign(news.loss))
        return self._halving.is_rung(news.validation)

    def decide(self, trial: TrialRecord, news: Validation) -> bool:
        """Compare a trial with those that came to the same rung before it, and write that down.

        Returns:
            Whether it goes on.
        """
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
        """Enter what an earlier driver or another one decided.

        Args:
            mine: Numbers of this driver's trials, which enter themselves.
        """
        trials = self.store.cached
        self._unread.update(range(self._begun, len(trials)))
        self._begun = len(trials)
        for trial in [trials[number] for number in self._unread]:
            if trial.number in mine:
                continue
            for validation, kept in trial.rungs.items():
                self._halving.enter(trial.number, int(validation), kept["loss"], self._costs(trial))
            if trial.state.is_finished():
                self._unread.discard(trial.number)

    def _costs(self, trial: TrialRecord) -> tuple[float, ...]:
        return self.store.objectives.point(0.0, trial.costs)[1:]

    def _sign(self, loss: float) -> float:
        return -loss if self.store.objectives.maximise else loss
