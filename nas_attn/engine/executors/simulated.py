"""Run trials in virtual time: their learning curves are known, and nothing is waited for.

So a search with a thousand workers is tried on a laptop, with the driver, the record, the sampler
and the stopping rule that a real one has.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nas_attn.engine.loop import SearchLoop
from nas_attn.simulation.command import parse_replay_command
from nas_attn.simulation.synthetic import curve_of, drawn_fault
from nas_attn.trials.failures import FailureKind, failure_of_error
from nas_attn.trials.job import TrialJob, TrialResult, Validation

logger = logging.getLogger(__name__)

DEFAULT_WORKERS = 1000
WAIT_SECONDS = 0.05


@dataclass
class _Simulated:
    """A trial in virtual time."""

    job: TrialJob
    steps: Iterator[tuple[float, Validation | FailureKind]]
    began: float
    losses: dict[int, float]


class SimulatedExecutor:
    """Replays trials in virtual time.

    Args:
        workers: Trials at a time.
    """

    frees_machine = False

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or DEFAULT_WORKERS
        self.clock = 0.0
        self._attempts: dict[int, int] = {}

    def run(self, loop: SearchLoop) -> None:
        """Run until the search is over."""
        events: list[tuple[float, int, _Simulated]] = []
        order = itertools.count()

        def schedule(trial: _Simulated) -> None:
            """Queue the next event of a trial; one without another validation ends."""
            try:
                step = next(trial.steps, None)
            except Exception as error:  # ends this trial, and never the search
                failure = failure_of_error(error, f"trial {trial.job.number}")
                if failure.kind is FailureKind.INTERNAL:
                    logger.error("trial %d", trial.job.number, exc_info=error)
                result = self._result(trial, failure.message, failure.kind)
                loop.finish(trial.job.number, result)
                return
            if step is None:
                loop.finish(trial.job.number, self._result(trial))
                return
            heapq.heappush(events, (trial.began + step[0], next(order), trial))
            pending[trial.job.number] = step[1]

        pending: dict[int, Validation | FailureKind] = {}
        while True:
            while len(events) < self.workers and (job := loop.next_job()) is not None:
                schedule(self._begin(job))
            if not events:
                if loop.is_over():
                    return
                time.sleep(WAIT_SECONDS)
                continue
            self.clock, _, trial = heapq.heappop(events)
            step = pending.pop(trial.job.number)
            if isinstance(step, FailureKind):
                error = f"simulated: {step}"
                loop.finish(trial.job.number, self._result(trial, error, step))
                continue
            trial.losses[step.seed] = min(trial.losses.get(step.seed, math.inf), step.loss)
            if not math.isfinite(step.loss):  # as a training would end at it
                error = f"the validation {trial.job.metric} of seed {step.seed} is {step.loss}"
                result = self._result(trial, error, FailureKind.NOT_FINITE)
                loop.finish(trial.job.number, result)
            elif loop.progress(trial.job.number, step):
                schedule(trial)
            else:
                trial.losses.clear()
                loop.finish(trial.job.number, self._result(trial))

    def _begin(self, job: TrialJob) -> _Simulated:
        attempt = self._attempts[job.number] = self._attempts.get(job.number, 0) + 1
        return _Simulated(job, _steps(job, attempt), self.clock, {})

    def _result(
        self, trial: _Simulated, error: str | None = None, failure: FailureKind | None = None
    ) -> TrialResult:
        losses = () if error else tuple(trial.losses.values())
        seconds = self.clock - trial.began
        return TrialResult(losses=losses, seconds=seconds, error=error, failure=failure)


def _steps(job: TrialJob, attempt: int) -> Iterator[tuple[float, Validation | FailureKind]]:
    """Seconds since the trial's start, and what happens then."""
    before = 0.0
    for index, run in enumerate(job.runs):
        training = parse_replay_command(run.command)
        plan, seed = training.plan_text, training.seed
        fault = drawn_fault(training.config, plan, seed, attempt)
        points = curve_of(training.config, plan, training.parameters, seed).points
        for count, point in enumerate(points, start=1):
            if fault is not None and count > len(points) // 2:
                yield before + point.seconds, FailureKind(fault)
                return
            news = Validation(
                seed=seed,
                seed_index=index,
                num_updates=point.num_updates,
                validation=count,
                loss=point.loss,
                settled=True,
                is_last=index == len(job.runs) - 1 and count == len(points),
            )
            yield before + point.seconds, news
        before += points[-1].seconds
