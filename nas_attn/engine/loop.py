"""The loop of a search: which trial runs next, and what becomes of its result.

An executor asks for jobs and reports what happened; all it is given and all it reports goes through
the record, so a search can be killed at any time and started again with the same command, and
several drivers can work on one study.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from optuna.trial import TrialState

from nas_attn.engine import trial_record as fields
from nas_attn.engine.candidates import MAX_REFUSALS, Proposal, Proposer
from nas_attn.engine.config import SearchConfig
from nas_attn.engine.endings import (
    FailuresInARow,
    attempt_entry,
    memory_advice,
    missing_start,
    ran_out_of_memory,
)
from nas_attn.engine.entries import (
    checked,
    costs_after,
    job_entry,
    proposal_entry,
    result_entry,
)
from nas_attn.engine.leases import TrialLeases
from nas_attn.engine.plan_costs import PlanCosts
from nas_attn.engine.rungs import RULES
from nas_attn.engine.snapshot import RunningTrial, Snapshot, Tally
from nas_attn.engine.stopping import reason_of, was_stopped
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import NewTrial, TrialRecord
from nas_attn.engine.wording import OF_A_SEARCH, Wording
from nas_attn.errors import NasAttnError, SearchError
from nas_attn.plan import AttentionPlan
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import StartFolders, TrialJob, TrialResult, Validation
from nas_attn.trials.updates import Updates

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the trials of other drivers are looked at."""
RETRY_SECONDS = (0.0, 10.0, 60.0)
"""How long a trial waits before it is continued for the first, second, and every later time."""
MAX_FRUITLESS = 10 * MAX_REFUSALS
"""Proposals in a row that repeat plans or break limits before the search ends: nothing comes."""

JobBuilder = Callable[[int, AttentionPlan, StartFolders], TrialJob]
"""From a trial's number, its plan and the folders that it may start from."""


@dataclass
class SearchLoop:
    """Decides what to run and writes down what came out.

    Args:
        store: Trials of the study.
        leases: Leases of this driver.
        proposer: Proposer of plans, with an empty history.
        config: Budget and stopping rule.
        build_job: Function that makes a trial's job.
        retries: Times that a trial is continued after a fault that may not come again.
        frees_machine: Whether the executor keeps the machine free for a job that is to have it.
        wording: What the log calls a trial.
        on_change: Function that is called with a function that makes a snapshot, whenever something
            happened.
    """

    store: TrialStore
    leases: TrialLeases
    proposer: Proposer
    config: SearchConfig
    build_job: JobBuilder
    retries: int = 0
    frees_machine: bool = True
    wording: Wording = OF_A_SEARCH
    on_change: Callable[[Callable[[], Snapshot]], None] = lambda snapshot: None
    _waiting: list[tuple[float, TrialRecord]] = field(default_factory=list)
    _running: dict[int, RunningTrial] = field(default_factory=dict)
    _mine: dict[int, TrialRecord] = field(default_factory=dict)
    _tally: Tally = field(default_factory=Tally)
    _abort: str | None = None
    _exhausted: bool = False
    _fruitless: int = 0
    _looked: float = 0.0
    _read_again: float = 0.0

    def __post_init__(self) -> None:
        self._stopping = RULES[self.config.stopping.rule](self.store, self.config.stopping)
        self._failures = FailuresInARow(self.config.give_up_after)
        self._look()

    @property
    def costs(self) -> PlanCosts:
        return self.proposer.costs

    @property
    def may_stop(self) -> bool:
        """Whether a running trial may be told to stop."""
        return self.config.stopping.rule != "none"

    @property
    def _budget(self) -> int:
        return max(self.config.trials, self.proposer.counted)

    def _name(self, number: int) -> str:
        return self.wording.name(number, self._budget)

    def snapshot(self) -> Snapshot:
        """Where the search stands."""
        tally = self._tally
        ended = tally.finished + tally.stopped + tally.over_limit + tally.failed
        return Snapshot(
            budget=self._budget,
            finished=tally.finished,
            stopped=tally.stopped,
            over_limit=tally.over_limit,
            failed=tally.failed,
            running=tuple(self._running.values()),
            elsewhere=max(
                0, self.proposer.counted - ended - len(self._running) - len(self._waiting)
            ),
            trained=tuple(tally.trained),
            latest=tuple(tally.latest),
            front=tuple(tally.front),
            baseline=tally.baseline,
            mean_seconds=tally.mean_seconds,
            starts_warm=self.config.warm_start.from_baseline,
        )

    def next_job(self) -> TrialJob | None:
        """The next trial to run; None if there is none now (see `is_over`).

        Trials that were interrupted come first.
        """
        if self._abort is not None:
            return None
        if time.monotonic() - self._looked > LOOK_SECONDS and not self._waiting:
            self._look()
        for index, (ready, trial) in enumerate(self._waiting):
            if time.monotonic() >= ready:
                del self._waiting[index]
                return self._continue(trial)
        while not self._exhausted and self._abort is None:
            self._read_others()
            if self.proposer.counted >= self.config.trials or self._waits():
                return None
            proposal = self.proposer.propose()
            if proposal is None:
                self._exhausted = True
                return None
            job = self._begin(proposal)
            if job is not None:
                self._fruitless = 0
                return job
            self._fruitless += 1
            if self._fruitless >= MAX_FRUITLESS:
                self._abort = (
                    f"{MAX_FRUITLESS} proposals in a row repeated what was tried or were over a "
                    "limit, so the search ends: widen objectives.limits or the space"
                )
        return None

    def _waits(self) -> bool:
        """Whether trials are to start from a baseline, or from others, still in training."""
        is_needed = self.config.warm_start.from_baseline and self.proposer.has_baseline
        return is_needed and (self._tally.baseline is None or self.proposer.waits)

    def is_over(self) -> bool:
        """Whether no trial runs, waits or can be proposed, with other drivers' taken into account.

        Trials of a driver that has died are noticed as they are looked at.
        """
        if self._running:
            return False
        if self._abort is not None:
            return True
        if self._waiting:
            return False
        if not self._exhausted and self.proposer.counted < self.config.trials:
            return False
        return not self.proposer.awaited

    def placed(self, number: int, gpus: str) -> None:
        """A trial begins on GPUs, which others are to see."""
        self._running[number] = replace(self._running[number], gpus=gpus)
        if self.leases.owns(self._mine[number]):
            self.store.annotate(number, {fields.GPUS: gpus})

    def is_mine(self, number: int) -> bool:
        """Whether a trial that has not begun yet still is this driver's to run.

        If not, the executor calls `finish`.
        """
        return self.leases.owns(self._mine[number])

    def progress(self, number: int, news: Validation) -> bool:
        """A running trial has validated; returns whether it goes on.

        If not, the executor stops it and calls `finish`. It does not if another driver has taken
        the trial over.
        """
        self._running[number] = replace(self._running[number], last=news)
        if not self.leases.owns(self._mine[number]):
            return False
        goes_on = True
        if news.seed_index == 0 and not news.is_start:
            self.store.validated(number, news.num_updates, news.loss)
            if news.settled:
                goes_on = self._judge(self._mine[number], news)
        self._tell()
        return goes_on

    def trains(self, number: int, updates: Updates | None) -> None:
        """How far the training of a running trial is, for the display."""
        if updates is not None and updates != self._running[number].updates:
            self._running[number] = replace(self._running[number], updates=updates)
            self._tell()

    def finish(self, number: int, result: TrialResult) -> None:
        """A trial has ended, well or not, or was stopped."""
        running, trial = self._running.pop(number), self._mine.pop(number)
        decisions = self._stopping.leave(number)
        if not self.leases.owns(trial):
            logger.warning("%s was taken over by another driver", self._name(number))
            return
        # What runs on another node reports no updates where it is stopped.
        result = checked(result, self.costs, self.store.objectives)
        updates = max(result.updates, running.last.num_updates if running.last else 0)
        spent = {fields.SECONDS: round(result.seconds, 2), fields.UPDATES: updates}
        self.store.annotate(number, spent)
        if result.losses:
            self._complete(number, running, trial, result)
        elif was_stopped(decisions):
            self.store.stop(number, reason_of(decisions))
            self._failures.clear()
            logger.info("%s: %s", self._name(number), reason_of(decisions))
        elif self._retries(trial, result, running):
            return
        else:
            self._fail(trial, result, running)
        self._follow()
        self._tell()

    @property
    def has_given_up(self) -> bool:
        """Whether the search had to end early (see `outcome`)."""
        return self._abort is not None

    def outcome(self) -> Snapshot:
        """The end of a search.

        Raises:
            SearchError: the search had to end early.
        """
        if self._abort is not None:
            raise SearchError(self._abort)
        if self._exhausted:
            within = " within the limits" if self.store.objectives.limits else ""
            logger.info("every plan of the space%s has been tried", within)
        return self.snapshot()

    def _begin(self, proposal: Proposal) -> TrialJob | None:
        """Write a proposal down; returns its job if it is one to be run."""
        original = (
            None if proposal.duplicate_of is None else self.store.cached[proposal.duplicate_of]
        )
        attributes = proposal_entry(proposal, self.leases.driver)
        state, values, job = TrialState.RUNNING, None, None
        if original is not None:
            attributes[fields.DUPLICATE] = original.number
            state, values = TrialState.COMPLETE, original.values
            if values is None:
                state = TrialState.FAIL
                attributes[fields.REASON] = f"repeats trial {original.number}, which has no result"
        elif proposal.excess is not None:
            state, attributes[fields.REASON] = TrialState.PRUNED, proposal.excess
        else:
            attributes[fields.BASELINE] = proposal.plan == self.proposer.baseline
            try:
                job = self._build_job(proposal.number, proposal.plan, proposal.parent)
            except NasAttnError as error:
                state = TrialState.FAIL
                attributes |= {fields.REASON: str(error), fields.FAILURE: str(FailureKind.TRAINING)}
            else:
                if self._lacks_start(job):
                    return None
                # The sampler learns such a cost from the trial's end, and not from the plan.
                attributes |= {fields.CERTAIN: proposal.certain, **job_entry(job)}
        new = NewTrial(
            attributes=attributes,
            params=proposal.params,
            system=proposal.system,
            state=state,
            values=values,
        )
        number = self.store.create(new)
        if number != proposal.number:
            self._withdraw(number, is_over=new.state.is_finished())
            return None
        self.proposer.written()
        self._follow()
        trial = self.store.cached[number]
        if fields.FAILURE in attributes:
            self._count_failure(trial, FailureKind.TRAINING, attributes[fields.REASON])
        if job is None:
            return None
        self._mine[number] = trial
        return self._start(trial, job)

    def _lacks_start(self, job: TrialJob) -> bool:
        """Whether a file that trials start from is of no use, which ends the search."""
        missing = missing_start(job)
        if missing is not None:
            self._abort = missing
            logger.error("%s", missing)
        return missing is not None

    def _withdraw(self, number: int, *, is_over: bool) -> None:
        """Another driver was faster, so the proposal was made from a history of yesterday."""
        if not is_over:
            self.store.fail(number, "withdrawn: another driver's proposal came first")
        self.proposer.forget()
        self._look()

    def _continue(self, trial: TrialRecord) -> TrialJob | None:
        """Go on with a trial that was interrupted."""
        assert trial.plan is not None
        if not self.leases.owns(trial):
            return None
        if was_stopped(trial.rungs):
            self.store.stop(trial.number, reason_of(trial.rungs))
            self._follow()
            return None
        logger.info("%s resumes where it was interrupted", self._name(trial.number))
        self._mine[trial.number] = trial
        self._stopping.resume(trial)
        job = self._build_job(trial.number, trial.plan, trial.parent)
        has_machine = self.frees_machine and ran_out_of_memory(trial, of_machine=True)
        alone = has_machine or ran_out_of_memory(trial, of_machine=False)
        return self._start(trial, replace(job, alone=alone, has_machine=has_machine))

    def _build_job(self, number: int, plan: AttentionPlan, parent: int | None) -> TrialJob:
        baseline = self._tally.baseline
        start = None if parent is None else self.store.cached[parent]
        folders = StartFolders(
            baseline=None if baseline is None else baseline.folder,
            parent=None if start is None or start.is_baseline else start.folder,
        )
        return self.build_job(number, plan, folders)

    def _start(self, trial: TrialRecord, job: TrialJob) -> TrialJob:
        assert trial.plan is not None
        self._running[trial.number] = RunningTrial(
            number=trial.number,
            name=self._name(trial.number),
            plan=trial.plan,
            cost=trial.cost or 0,
            started=time.time(),
            is_warm=trial.is_warm,
        )
        self._tell()
        return job

    def _tell(self) -> None:
        self.on_change(self.snapshot)

    def _read_others(self) -> None:
        """See what other drivers wrote; reading grows with the study, so it may take a tenth of the
        time at most."""
        began = time.monotonic()
        if began < self._read_again:
            return
        self.store.trials()
        self._follow()
        self._stopping.read(self._mine)
        now = time.monotonic()
        self._read_again = now + 9 * (now - began)

    def _follow(self) -> None:
        """Bring history and sums up to what is known of the record."""
        self.proposer.update(self.store.cached, self.store.finished_numbers)
        self._tally.update(self.store.cached, self.store.finished_numbers)

    def _look(self) -> None:
        """Look for trials that nobody runs, such as those of a driver that died."""
        self._looked = time.monotonic()
        trials = self.store.trials()
        self._follow()
        self._stopping.read(self._mine)
        known = {*self._mine, *(trial.number for _, trial in self._waiting)}
        strange = [trials[number] for number in self.proposer.running - known]
        if not strange:
            return
        mine = [trial for trial in strange if self.leases.owns(trial)]
        taken = self.leases.claim_abandoned(strange)
        for number in sorted(trial.number for trial in (*mine, *taken)):
            trial = self.store.refresh(number)
            if not trial.state.is_finished():
                self._adopt(trial)

    def _adopt(self, trial: TrialRecord) -> None:
        if trial.plan is None:
            self.store.fail(trial.number, "the driver died before the trial was planned")
        elif trial.is_superseded:
            self.store.fail(trial.number, "withdrawn: another driver's proposal came first")
        else:
            self._waiting.append((0.0, trial))

    def _judge(self, trial: TrialRecord, news: Validation) -> bool:
        """A running trial has validated; returns whether the stopping rule lets it go on."""
        if not self._stopping.reach(trial, news):
            return True
        self._read_others()
        return self._stopping.decide(trial, news)

    def _complete(
        self, number: int, running: RunningTrial, trial: TrialRecord, result: TrialResult
    ) -> None:
        costs = costs_after(result, trial.costs, self.costs, self.store.objectives)
        self.store.annotate(number, result_entry(result, costs))
        self._failures.clear()
        excess = self.store.objectives.violated_limit(costs, when="after pruning, ")
        if excess is not None and result.plans:
            self.store.stop(number, excess)
            logger.info("%s: %s", self._name(number), excess)
            return
        self.store.complete(number, result.loss, costs)
        objectives = self.store.objectives
        said = self.wording.completed(result, costs, objectives.primary_cost)
        logger.info("%s: %s %s, %s", self._name(number), objectives.metric, said, running.plan)

    def _retries(self, trial: TrialRecord, result: TrialResult, running: RunningTrial) -> bool:
        """Continue a trial after a fault that may not come again; False if it is not worth it."""
        if result.failure is None or not result.failure.can_retry:
            return False
        lacks_memory = result.failure is FailureKind.OUT_OF_MEMORY
        of_gpus = lacks_memory and bool(running.gpus) and not result.host_memory
        if of_gpus and ran_out_of_memory(trial, of_machine=False) and not self._count_others():
            return False  # it had the GPUs to itself
        attempts = list(trial.attempts)
        if len(attempts) >= self.retries:
            return False
        attempts.append(attempt_entry(result, running.gpus))
        self.store.annotate(trial.number, {fields.ATTEMPTS: attempts})
        has_machine = lacks_memory and not of_gpus and self.frees_machine
        # A disk is not emptied at once.
        late = len(attempts) - (result.failure is not FailureKind.DISK_FULL)
        pause = RETRY_SECONDS[min(late, len(RETRY_SECONDS) - 1)]
        logger.warning(
            "%s: %s; continued%s in %.0f s (%d of %d)",
            self._name(trial.number),
            result.error,
            " alone on its GPUs" if of_gpus else " alone on its machine" if has_machine else "",
            pause,
            len(attempts),
            self.retries,
        )
        self._waiting.append((time.monotonic() + pause, self.store.refresh(trial.number)))
        self._tell()
        return True

    def _count_others(self) -> int:
        """Trials that other drivers have running, which this one cannot hold back."""
        self._read_others()
        waiting = {trial.number for _, trial in self._waiting}
        others = self.proposer.running - self._running.keys() - waiting
        return sum(self.leases.owner(self.store.cached[n]) != self.leases.driver for n in others)

    def _fail(self, trial: TrialRecord, result: TrialResult, running: RunningTrial) -> None:
        assert result.error is not None
        kind, error = result.failure or FailureKind.TRAINING, result.error
        if kind is FailureKind.OUT_OF_MEMORY:
            gpus = None if result.host_memory else running.gpus or None
            alone = ran_out_of_memory(trial, of_machine=gpus is None)
            alone = alone and (gpus is not None or self.frees_machine)
            advice = memory_advice(gpus, alone=alone, others=self._count_others())
            error += f"\n{advice}"
        self.store.fail(trial.number, error, str(kind))
        self._count_failure(trial, kind, error)

    def _count_failure(self, trial: TrialRecord, kind: FailureKind, error: str) -> None:
        """Say that a trial has failed, and end the search if it is the baseline or one too many."""
        logger.error("%s failed: %s", self._name(trial.number), error)
        self._abort = self._failures.add(trial, kind, error) or self._abort
