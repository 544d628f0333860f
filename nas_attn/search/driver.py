"""The conductor of a search: which trial runs next, and what becomes of its result.

An executor asks for jobs and reports what happened; all it is told and all it tells goes through
the record, so a search can be killed at any time and started again with the same command.
"""

from __future__ import annotations

import fcntl
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

import optuna
from optuna.trial import TrialState

from nas_attn.attention.counting import ModelSize
from nas_attn.errors import SearchError
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.search import record as fields
from nas_attn.search.config import SearchConfig
from nas_attn.search.record import Record, TrialRecord, front
from nas_attn.search.samplers import (
    StratifiedProposer,
    answers_of,
    decisions_of,
    make_sampler,
    suggest,
)
from nas_attn.space import Alternative, SearchSpace
from nas_attn.training.model import Sizer
from nas_attn.training.worker import Progress, TrialJob, TrialResult, write_trial_files

logger = logging.getLogger(__name__)

LOCK = "driver.lock"
MAX_DUPLICATES = 8
"""Proposals in a row that repeat known plans before the stratified proposer is asked instead."""

JobBuilder = Callable[[int, AttentionPlan], TrialJob]


class Executor(Protocol):
    """Runs a conductor's jobs until there are none left."""

    workers: int

    def run(self, conductor: Conductor) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial in progress, for the display."""

    number: int
    plan: AttentionPlan
    parameters: int
    started: float
    last: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a search at one moment, for the display."""

    budget: int
    finished: int = 0
    failed: int = 0
    running: tuple[RunningTrial, ...] = ()
    front: tuple[TrialRecord, ...] = ()
    baseline: TrialRecord | None = None
    mean_trial_seconds: float | None = None

    def seconds_left(self, workers: int) -> float | None:
        """An estimate from the trials so far; None before the first."""
        if self.mean_trial_seconds is None:
            return None
        to_start = self.budget - self.finished - self.failed - len(self.running)
        now = time.time()
        rest = [max(0.0, self.mean_trial_seconds - (now - r.started)) for r in self.running]
        work = sum(rest) + max(0, to_start) * self.mean_trial_seconds
        return max([work / workers, *rest])


@dataclass
class Conductor:
    """Decides what to run and writes down what came out.

    Args:
        record: of the study.
        space: what may be proposed.
        sizer: exact sizes of plans.
        config: sampler and budget.
        build_job: turns a trial's number and plan into a job.
        on_change: called with a new snapshot whenever something happened.
    """

    record: Record
    space: SearchSpace
    sizer: Sizer
    config: SearchConfig
    build_job: JobBuilder
    on_change: Callable[[Snapshot], None] = lambda snapshot: None
    _resumed: list[TrialRecord] = field(default_factory=list)
    _running: dict[int, RunningTrial] = field(default_factory=dict)
    _baseline_number: int | None = None
    _abort: str | None = None
    _exhausted: bool = False

    def __post_init__(self) -> None:
        trials = self.record.trials()
        self._sampler = make_sampler(self.config, len(trials))
        self.record.study.sampler = self._sampler
        self._proposer = StratifiedProposer(self.space, self._parameters, self.config.seed)
        self.baseline = AttentionPlan.uniform(
            AttentionChoice("multi_head"), tuple(self.sizer.shapes)
        )
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            if trial.plan is None or trial.duplicate_of is not None:
                self.record.fail(trial.number, "the driver died before the trial was planned")
            else:
                self._resumed.append(trial)

    def snapshot(self) -> Snapshot:
        """Where the search stands."""
        trials = [trial for trial in self.record.trials() if trial.counts]
        trained = [trial for trial in trials if trial.is_trained]
        spent = [trial.seconds for trial in trained if trial.seconds > 0]
        return Snapshot(
            budget=max(self.config.trials, len(trials)),
            finished=len(trained),
            failed=sum(trial.state == TrialState.FAIL for trial in trials),
            running=tuple(self._running.values()),
            front=tuple(front(trained)),
            baseline=next((trial for trial in trained if trial.is_baseline), None),
            mean_trial_seconds=sum(spent) / len(spent) if spent else None,
        )

    def next_job(self) -> TrialJob | None:
        """The next trial to run; None when the budget is spent, or the search must end.

        Trials that an earlier driver left running come first.
        """
        if self._abort is not None:
            return None
        if self._resumed:
            trial = self._resumed.pop(0)
            assert trial.plan is not None
            if trial.is_baseline:
                self._baseline_number = trial.number
            logger.info("trial %d goes on where it was interrupted", trial.number)
            return self._start(trial.number, trial.plan)
        trials = self.record.trials()
        if sum(trial.counts for trial in trials) >= self.config.trials:
            return None
        has_baseline = any(
            t.is_baseline and t.state in (TrialState.COMPLETE, TrialState.RUNNING) for t in trials
        )
        proposed = self._propose_baseline() if not has_baseline else self._propose(trials)
        if proposed is None:
            self._exhausted = True
            return None
        number, plan = proposed
        size, certain = self.sizer.expected(plan)
        job = self.build_job(number, plan)
        write_trial_files(job, plan.to_json())
        self.record.annotate(
            number,
            {
                fields.BASELINE: plan == self.baseline,
                fields.SIZE: size._asdict(),
                # The sampler learns such a count from the trial's end, and not from the plan.
                fields.CERTAIN: certain,
                fields.COMMANDS: [list(run.command) for run in job.runs],
                fields.THREADS: job.threads,
                fields.FOLDER: job.folder,
                # Last: a trial with a plan can be continued.
                fields.PLAN: plan.to_json(),
            },
        )
        if plan == self.baseline:
            self._baseline_number = number
        return self._start(number, plan, job)

    def progress(self, number: int, news: Progress) -> None:
        """A running trial has validated."""
        self._running[number] = replace(self._running[number], last=news)
        self._tell()

    def finish(self, number: int, result: TrialResult) -> None:
        """A trial has ended, well or not."""
        running = self._running.pop(number)
        self.record.annotate(number, {fields.SECONDS: round(result.seconds, 2)})
        if result.error is None:
            self.record.annotate(number, {fields.LOSSES: list(result.losses)})
            if result.plans:
                running = replace(running, parameters=self._note_pruned(number, result.plans))
            self.record.complete(number, result.loss, running.parameters)
            logger.info(
                "trial %d: loss %.4f, %s parameters, %s",
                number,
                result.loss,
                f"{running.parameters:,}",
                running.plan,
            )
        else:
            self.record.fail(number, result.error)
            logger.error("trial %d failed: %s", number, result.error)
            if number == self._baseline_number:
                self._abort = (
                    f"the baseline (trial {number}) failed, so nothing could be compared with it: "
                    f"{result.error}"
                )
        self._tell()

    def outcome(self) -> Snapshot:
        """The end of a search.

        Raises:
            SearchError: the search had to end early.
        """
        if self._abort is not None:
            raise SearchError(self._abort)
        if self._exhausted:
            logger.info("every plan of the space has been tried")
        return self.snapshot()

    def _start(self, number: int, plan: AttentionPlan, job: TrialJob | None = None) -> TrialJob:
        self._running[number] = RunningTrial(
            number=number, plan=plan, parameters=self._parameters(plan), started=time.time()
        )
        self._tell()
        return job or self.build_job(number, plan)

    def _tell(self) -> None:
        self.on_change(self.snapshot())

    def _note_pruned(self, number: int, plans: Sequence[dict[str, Any]]) -> int:
        """Write down what pruning left; returns the objective, a mean over seeds."""
        sizes = [self.sizer.size(AttentionPlan.from_json(plan)) for plan in plans]
        size = ModelSize(*(round(statistics.fmean(counts)) for counts in zip(*sizes, strict=True)))
        found = {fields.PRUNED: list(plans), fields.SIZE: size._asdict()}
        self.record.annotate(number, found)
        parameters: int = getattr(size, self.record.objective)
        return parameters

    def _parameters(self, plan: AttentionPlan) -> int:
        parameters: int = getattr(self.sizer.expected(plan)[0], self.record.objective)
        return parameters

    def _propose_baseline(self) -> tuple[int, AttentionPlan]:
        chosen = self.space.encode(self.baseline)
        if chosen is not None:
            return self._ask_given(chosen)
        return self.record.study.ask().number, self.baseline

    def _propose(self, trials: list[TrialRecord]) -> tuple[int, AttentionPlan] | None:
        known: dict[str, TrialRecord] = {}
        for trial in trials:
            if trial.plan is not None and trial.duplicate_of is None:
                known.setdefault(trial.plan.dumps(), trial)
        started = sum(trial.counts for trial in trials) - 1
        is_startup = started < self.config.startup_trials
        if not is_startup and self.config.sampler != "stratified_random":
            for _ in range(MAX_DUPLICATES):
                asked = self.record.study.ask()
                plan = self._answer(asked)
                twin = known.get(plan.dumps())
                if twin is None:
                    return asked.number, plan
                self._take_over(asked.number, plan, twin)
        chosen = self._proposer.propose(started, known.keys())
        return None if chosen is None else self._ask_given(chosen)

    def _ask_given(self, chosen: tuple[Alternative, ...]) -> tuple[int, AttentionPlan]:
        self._sampler.give_next(answers_of(decisions_of(self.space, chosen)))
        trial = self.record.study.ask()
        return trial.number, self._answer(trial)

    def _answer(self, trial: optuna.Trial) -> AttentionPlan:
        chosen = [
            unit.choose(lambda decision: suggest(trial, decision)) for unit in self.space.units
        ]
        return self.space.plan(chosen)

    def _take_over(self, number: int, plan: AttentionPlan, twin: TrialRecord) -> None:
        """A plan that is known is not trained again: its result is told to the sampler at once."""
        self.record.annotate(
            number,
            {
                fields.DUPLICATE: twin.number,
                fields.SIZE: (twin.size or self.sizer.size(plan))._asdict(),
                fields.PLAN: plan.to_json(),
            },
        )
        if twin.is_complete and twin.loss is not None and twin.parameters is not None:
            self.record.complete(number, twin.loss, twin.parameters)
        else:
            self.record.fail(number, f"repeats trial {twin.number}, which has no result")


def lock_run_folder(folder: Path) -> IO[str]:
    """Hold a run folder for one driver until the returned file is closed or the process ends.

    Raises:
        SearchError: another driver holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise SearchError(f"another search is running in {folder}") from None
    return lock
