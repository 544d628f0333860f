"""How Tune asks the loop of a search for trials, and whether they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas_attn.engine.loop import SearchLoop
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import TrialResult, Validation


class LoopSearcher(Searcher):
    """Lets Tune ask the loop for jobs and report what became of them.

    Args:
        loop: Loop of the search.
        places: Function that returns how many trials fit now. A trial begins when there is room for
            it, since its proposal had better know what came before, and Ray would let it wait for a
            lost node.
        trials_a_gpu: Places that a trial takes that is to be alone on its GPU. So many are held
            back in all, not on one GPU: it waits in Ray until one is wholly free, and others that
            find places meanwhile may make it wait longer.
    """

    def __init__(
        self, loop: SearchLoop, places: Callable[[], int], *, trials_a_gpu: int = 1
    ) -> None:
        super().__init__(metric="loss", mode="min")
        self.loop = loop
        self.places = places
        self.trials_a_gpu = trials_a_gpu
        self.numbers: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._began: dict[str, float] = {}

    def suggest(self, trial_id: str) -> Any:
        has_room = sum(self._taken.values()) < self.places()
        job = self.loop.next_job() if has_room else None
        if job is None:
            # None means: ask again later.
            return Searcher.FINISHED if self.loop.is_over() else None
        self.numbers[trial_id] = job.number
        self._taken[trial_id] = self.trials_a_gpu if job.alone else 1
        self._began[trial_id] = time.monotonic()
        return {"job": job.to_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return  # Tune reports twice where a worker dies as its trial ends
        del self._taken[trial_id]
        seconds = time.monotonic() - self._began.pop(trial_id)
        if result is not None and "ended" in result:
            ended = TrialResult.from_json(json.loads(result["ended"]))
        elif error or result is None:
            ended = TrialResult(
                seconds=seconds,
                error="the Ray worker of the trial died, or its node did",
                failure=FailureKind.WORKER_LOST,
            )
        else:
            ended = TrialResult(seconds=seconds)
        self.loop.finish(number, ended)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; nothing of this is ever restored."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the record is the Optuna study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the record is the Optuna study."""


class LoopScheduler(FIFOScheduler):
    """Asks the loop at every validation whether a trial goes on."""

    def __init__(self, searcher: LoopSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; nothing of this is ever restored."""
        return {}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "placed" in result:
            self.searcher.loop.placed(self.searcher.numbers[trial.trial_id], result["placed"])
        if "progress" not in result:
            return TrialScheduler.CONTINUE
        number = self.searcher.numbers[trial.trial_id]
        news = Validation(**json.loads(result["progress"]))
        goes_on = self.searcher.loop.progress(number, news)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
