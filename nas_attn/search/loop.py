"""The conductor of a search: which trial runs next, and what becomes of its result.

An executor asks for jobs and reports what happened; all it is told and all it tells goes through
the record, so a search can be killed at any time and started again with the same command, and
several drivers can work on one study.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import TrialState

from nas_attn.attention.counting import ModelSize
from nas_attn.errors import NasAttnError, PlanError, SearchError
from nas_attn.pareto import dominates
from nas_attn.plan import AttentionPlan
from nas_attn.search import store as fields
from nas_attn.search.candidates import MAX_REFUSALS, PlanCosts, Proposal, Proposer
from nas_attn.search.config import SearchConfig
from nas_attn.search.leases import Ownership
from nas_attn.search.stopping import Halving, reason_of, was_stopped
from nas_attn.search.store import NewTrial, Record, TrialRecord, front
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import Progress, TrialJob, TrialResult
from nas_attn.trials.layout import CALIBRATION_FILE, COMMANDS_FILE, START, fault_of_start

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the trials of other drivers are looked at."""
RETRY_SECONDS = (0.0, 10.0, 60.0)
"""How long a trial waits before it is continued for the first, second, and every later time."""
MAX_FRUITLESS = 10 * MAX_REFUSALS
"""Proposals in a row that repeat plans or break limits before the search ends: nothing comes."""
LATEST = 5
"""So many of the trials that ended last are in a snapshot."""

JobBuilder = Callable[[int, AttentionPlan, str | None], TrialJob]
"""From a trial's number, its plan and the folder of the trained baseline, if there is one."""


class Executor(Protocol):
    """Runs a conductor's jobs until the search is over."""

    workers: int

    def run(self, conductor: Conductor) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial in progress, for the display."""

    number: int
    plan: AttentionPlan
    cost: int
    started: float
    last: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a search at one moment, for the display.

    Args:
        budget: trials wanted.
        finished: trials with a result.
        stopped: trials that were stopped early.
        over_limit: trials that were trained, and of which pruning left more than a limit allows.
        failed: trials without a result.
        running: what this driver runs.
        elsewhere: trials that other drivers run.
        trained: the finished trials.
        latest: the trials that ended last, the very last at the end.
        front: those of the finished ones that no other dominates.
        baseline: if it is finished.
        mean_trial_seconds: of the trials that are over; None before the first.
    """

    budget: int
    finished: int = 0
    stopped: int = 0
    over_limit: int = 0
    failed: int = 0
    running: tuple[RunningTrial, ...] = ()
    elsewhere: int = 0
    trained: tuple[TrialRecord, ...] = ()
    latest: tuple[TrialRecord, ...] = ()
    front: tuple[TrialRecord, ...] = ()
    baseline: TrialRecord | None = None
    mean_trial_seconds: float | None = None

    @property
    def over(self) -> int:
        """Trials that are over, however they ended."""
        return self.finished + self.stopped + self.over_limit + self.failed

    def seconds_left(self, workers: int) -> float | None:
        """An estimate from the trials so far; None before the first."""
        if self.mean_trial_seconds is None:
            return None
        to_start = self.budget - self.over - len(self.running) - self.elsewhere
        now = time.time()
        rest = [max(0.0, self.mean_trial_seconds - (now - r.started)) for r in self.running]
        work = sum(rest) + max(0, to_start) * self.mean_trial_seconds
        return max([work / workers, *rest])


@dataclass
class _Tally:
    """Sums over the trials that are over, kept up one by one."""

    finished: int = 0
    stopped: int = 0
    over_limit: int = 0
    failed: int = 0
    seconds: float = 0.0
    trained: list[TrialRecord] = field(default_factory=list)
    latest: deque[TrialRecord] = field(default_factory=lambda: deque(maxlen=LATEST))
    front: list[TrialRecord] = field(default_factory=list)
    baseline: TrialRecord | None = None
    read: int = 0

    def update(self, trials: Sequence[TrialRecord], over: Sequence[int]) -> None:
        for number in over[self.read :]:
            self._add(trials[number])
        self.read = len(over)

    def _add(self, trial: TrialRecord) -> None:
        if not trial.counts:
            return
        self.seconds += trial.seconds
        self.latest.append(trial)
        self.stopped += trial.was_stopped
        self.over_limit += trial.is_over_limit
        self.failed += trial.state == TrialState.FAIL
        if not trial.is_trained:
            return
        self.finished += 1
        self.trained.append(trial)
        if trial.is_baseline:
            self.baseline = trial
        point = trial.point or ()
        if not any(dominates(other.point or (), point) for other in self.front):
            kept = [other for other in self.front if not dominates(point, other.point or ())]
            self.front = front([*kept, trial])


@dataclass
class Conductor:
    """Decides what to run and writes down what came out.

    Args:
        record: of the study.
        ownership: of this driver.
        proposer: of plans, with an empty history.
        config: budget and stopping rule.
        build_job: makes a trial's job.
        retries: times that a trial is continued after a fault that may not come again.
        on_change: called with a function that makes a snapshot whenever something happened.
    """

    record: Record
    ownership: Ownership
    proposer: Proposer
    config: SearchConfig
    build_job: JobBuilder
    retries: int = 0
    on_change: Callable[[Callable[[], Snapshot]], None] = lambda snapshot: None
    _waiting: list[tuple[float, TrialRecord]] = field(default_factory=list)
    _running: dict[int, RunningTrial] = field(default_factory=dict)
    _mine: dict[int, TrialRecord] = field(default_factory=dict)
    _tally: _Tally = field(default_factory=_Tally)
    _decisions: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    _best: dict[int, float] = field(default_factory=dict)
    _failures: list[str] = field(default_factory=list)
    _abort: str | None = None
    _exhausted: bool = False
    _fruitless: int = 0
    _looked: float = 0.0
    _read_again: float = 0.0

    def __post_init__(self) -> None:
        self._halving = Halving(self.config.stopping)
        self._off_rungs: set[int] = set()
        self._begun = 0
        self._look()

    @property
    def costs(self) -> PlanCosts:
        return self.proposer.costs

    def snapshot(self) -> Snapshot:
        """Where the search stands."""
        tally = self._tally
        ended = tally.finished + tally.stopped + tally.over_limit + tally.failed
        return Snapshot(
            budget=max(self.config.trials, self.proposer.counted),
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
            mean_trial_seconds=tally.seconds / ended if ended and tally.seconds else None,
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
            if self.proposer.counted >= self.config.trials or self._waits_for_baseline():
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

    def _waits_for_baseline(self) -> bool:
        """Whether trials are to start from a baseline that is still in training."""
        is_needed = self.config.warm_start.from_baseline and self.proposer.has_baseline
        return is_needed and self._tally.baseline is None

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
        return not self.proposer.running

    def progress(self, number: int, news: Progress) -> bool:
        """A running trial has validated; returns whether it goes on.

        If not, the executor stops it and calls `finish`. It does not if another driver has taken
        the trial over.
        """
        self._running[number] = replace(self._running[number], last=news)
        if not self.ownership.owns(self._mine[number]):
            return False
        goes_on = True
        if news.seed_index == 0 and not news.is_start:
            self.record.validated(number, news.num_updates, news.loss)
            if news.settled and self.config.stopping.rule == "halving":
                goes_on = self._at_rung(number, news)
        self._tell()
        return goes_on

    def finish(self, number: int, result: TrialResult) -> None:
        """A trial has ended, well or not, or was stopped."""
        running, trial = self._running.pop(number), self._mine.pop(number)
        decisions = self._decisions.pop(number, {})
        self._best.pop(number, None)
        if not self.ownership.owns(trial):
            logger.warning("trial %d was taken over by another driver", number)
            return
        # What runs on another node tells no updates where it is stopped.
        result = self._checked(result)
        updates = max(result.updates, running.last.num_updates if running.last else 0)
        spent = {fields.SECONDS: round(result.seconds, 2), fields.UPDATES: updates}
        self.record.annotate(number, spent)
        if result.losses:
            self._complete(number, running, trial, result)
        elif was_stopped(decisions):
            self.record.stop(number, reason_of(decisions))
            self._failures.clear()
            logger.info("trial %d: %s", number, reason_of(decisions))
        elif self._retries(trial, result):
            return
        else:
            self._fail(number, trial, result)
        self._follow()
        self._tell()

    def _checked(self, result: TrialResult) -> TrialResult:
        """A result as it is, or a failure if it cannot be one, whichever executor tells it."""
        if not result.losses:
            return result
        error, failure = None, FailureKind.NOT_FINITE
        if not all(math.isfinite(loss) for loss in result.losses):
            losses = ", ".join(str(loss) for loss in result.losses)
            error = f"the {self.record.objectives.loss} is {losses}"
        else:
            try:
                self._mean_costs(result.plans)
            except PlanError as wrong:
                error, failure = f"what pruning left is no plan: {wrong}", FailureKind.DAMAGED
        if error is None:
            return result
        return replace(result, losses=(), plans=(), error=error, failure=failure)

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
            within = " within the limits" if self.record.objectives.limits else ""
            logger.info("every plan of the space%s has been tried", within)
        return self.snapshot()

    def _begin(self, proposal: Proposal) -> TrialJob | None:
        """Write a proposal down; returns its job if it is one to be run."""
        twin = None if proposal.twin is None else self.record.known[proposal.twin]
        sizes = {name: proposal.costs[name] for name in ModelSize._fields}
        others = {name: n for name, n in proposal.costs.items() if name not in sizes}
        attributes: dict[str, Any] = {
            fields.PLAN: proposal.plan.to_json(),
            fields.SIZE: sizes,
            fields.COSTS: others,
            fields.PROPOSAL: proposal.origin(),
            fields.DRIVER: self.ownership.driver,
        }
        state, values, job = TrialState.RUNNING, None, None
        if twin is not None:
            attributes[fields.DUPLICATE] = twin.number
            state, values = TrialState.COMPLETE, twin.values
            if values is None:
                state = TrialState.FAIL
                attributes[fields.REASON] = f"repeats trial {twin.number}, which has no result"
        elif proposal.excess is not None:
            state, attributes[fields.REASON] = TrialState.PRUNED, proposal.excess
        else:
            attributes[fields.BASELINE] = proposal.plan == self.proposer.baseline
            try:
                job = self._build_job(proposal.number, proposal.plan)
            except NasAttnError as error:
                state = TrialState.FAIL
                attributes |= {fields.REASON: str(error), fields.FAILURE: str(FailureKind.TRAINING)}
            else:
                if self._lacks_start(job):
                    return None
                # The sampler learns such a cost from the trial's end, and not from the plan.
                attributes |= {fields.CERTAIN: proposal.certain, **_about(job)}
        new = NewTrial(
            attributes=attributes,
            params=proposal.params,
            system=proposal.system,
            state=state,
            values=values,
        )
        number = self.record.create(new)
        if number != proposal.number:
            self._withdraw(number, is_over=new.state.is_finished())
            return None
        self.proposer.written()
        self._follow()
        trial = self.record.known[number]
        if fields.FAILURE in attributes:
            self._count_failure(trial, FailureKind.TRAINING, attributes[fields.REASON])
        if job is None:
            return None
        self._mine[number] = trial
        return self._start(trial, job)

    def _lacks_start(self, job: TrialJob) -> bool:
        """Whether a file that trials start from is of no use, which ends the search: they would
        all fail, one after the other."""
        for path in map(Path, job.needs):
            fault = fault_of_start(path)
            if fault is not None:
                self._abort = (
                    f"{path}, which trials start from, {fault}, so none was begun; put it back"
                    f"{_how_made(path)}, and the same command goes on"
                )
                logger.error("%s", self._abort)
                return True
        return False

    def _withdraw(self, number: int, *, is_over: bool) -> None:
        """Another driver was faster, so the proposal was made from a history of yesterday."""
        if not is_over:
            self.record.fail(number, "withdrawn: another driver's proposal came first")
        self.proposer.forget()
        self._look()

    def _continue(self, trial: TrialRecord) -> TrialJob | None:
        """Go on with a trial that was interrupted."""
        assert trial.plan is not None
        if not self.ownership.owns(trial):
            return None
        if was_stopped(trial.rungs):
            self.record.stop(trial.number, reason_of(trial.rungs))
            self._follow()
            return None
        logger.info("trial %d goes on where it was interrupted", trial.number)
        self._mine[trial.number] = trial
        self._decisions[trial.number] = {k: dict(v) for k, v in trial.rungs.items()}
        return self._start(trial, self._build_job(trial.number, trial.plan))

    def _build_job(self, number: int, plan: AttentionPlan) -> TrialJob:
        baseline = self._tally.baseline
        return self.build_job(number, plan, None if baseline is None else baseline.folder)

    def _start(self, trial: TrialRecord, job: TrialJob) -> TrialJob:
        assert trial.plan is not None
        self._running[trial.number] = RunningTrial(
            number=trial.number, plan=trial.plan, cost=trial.cost or 0, started=time.time()
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
        self.record.trials()
        self._follow()
        self._fill_rungs()
        now = time.monotonic()
        self._read_again = now + 9 * (now - began)

    def _follow(self) -> None:
        """Bring history and sums up to what is known of the record."""
        self.proposer.update(self.record.known, self.record.over)
        self._tally.update(self.record.known, self.record.over)

    def _look(self) -> None:
        """Look for trials that nobody runs, such as those of a driver that died."""
        self._looked = time.monotonic()
        trials = self.record.trials()
        self._follow()
        self._fill_rungs()
        known = {*self._mine, *(trial.number for _, trial in self._waiting)}
        strange = [trials[number] for number in self.proposer.running - known]
        if not strange:
            return
        mine = [trial for trial in strange if self.ownership.owns(trial)]
        taken = self.ownership.claim_abandoned(strange)
        for number in sorted(trial.number for trial in (*mine, *taken)):
            trial = self.record.now(number)
            if not trial.state.is_finished():
                self._adopt(trial)

    def _adopt(self, trial: TrialRecord) -> None:
        if trial.plan is None:
            self.record.fail(trial.number, "the driver died before the trial was planned")
        elif trial.is_withdrawn:
            self.record.fail(trial.number, "withdrawn: another driver's proposal came first")
        else:
            self._waiting.append((0.0, trial))

    def _at_rung(self, number: int, news: Progress) -> bool:
        """Compare a trial with those that came to the same rung before it."""
        best = self._best[number] = min(self._best.get(number, math.inf), self._sign(news.loss))
        if not self._halving.is_rung(news.validation):
            return True
        self._read_others()
        trial = self._mine[number]
        decision = self._halving.enter(number, news.validation, best, self._known_costs(trial))
        kept = self._decisions.setdefault(number, {})
        key = str(news.validation)
        if decision is not None and key not in kept:
            if trial.is_baseline or news.is_last:  # which is compared with, or has nothing to save
                decision = replace(decision, goes_on=True)
            kept[key] = decision.to_json()
            self.record.annotate(number, {fields.RUNGS: kept})
        return key not in kept or bool(kept[key]["goes_on"])

    def _fill_rungs(self) -> None:
        """Enter what an earlier driver or another one decided; this one's trials enter
        themselves."""
        trials = self.record.known
        self._off_rungs.update(range(self._begun, len(trials)))
        self._begun = len(trials)
        for trial in [trials[number] for number in self._off_rungs]:
            if trial.number in self._mine:
                continue
            for validation, kept in trial.rungs.items():
                self._halving.enter(
                    trial.number, int(validation), kept["loss"], self._known_costs(trial)
                )
            if trial.state.is_finished():
                self._off_rungs.discard(trial.number)

    def _known_costs(self, trial: TrialRecord) -> tuple[float, ...]:
        return self.record.objectives.point(0.0, trial.costs)[1:]

    def _sign(self, loss: float) -> float:
        return -loss if self.record.objectives.maximise else loss

    def _complete(
        self, number: int, running: RunningTrial, trial: TrialRecord, result: TrialResult
    ) -> None:
        found: dict[str, Any] = {fields.LOSSES: list(result.losses)}
        costs: dict[str, float] = dict(trial.costs)
        if result.plans:
            found[fields.PRUNED] = list(result.plans)
            costs |= self._mean_costs(result.plans)
        costs |= result.measured
        found[fields.SIZE] = {name: costs[name] for name in ModelSize._fields}
        found[fields.COSTS] = {k: v for k, v in costs.items() if k not in ModelSize._fields}
        if result.tests:
            found[fields.TESTS] = list(result.tests)
        self.record.annotate(number, found)
        self._failures.clear()
        excess = self.record.objectives.excess(costs, when="after pruning, ")
        if excess is not None and result.plans:
            self.record.stop(number, excess)
            logger.info("trial %d: %s", number, excess)
            return
        self.record.complete(number, result.loss, costs)
        axis = self.record.objectives.axis
        about = (number, self.record.objectives.loss, result.loss, costs[axis], axis, running.plan)
        logger.info("trial %d: %s %.4f, %s %s, %s", *about[:3], f"{about[3]:,}", *about[4:])

    def _mean_costs(self, plans: Sequence[dict[str, Any]]) -> dict[str, float]:
        """What pruning left costs, a mean over seeds."""
        known = [self.costs.known(AttentionPlan.from_json(plan)) for plan in plans]
        names = known[0] if known else ()
        return {name: round(statistics.fmean(k[name] for k in known)) for name in names}

    def _retries(self, trial: TrialRecord, result: TrialResult) -> bool:
        """Continue a trial after a fault that may not come again; False if it is not worth it."""
        if result.failure is None or not result.failure.can_retry:
            return False
        attempts = list(trial.attempts)
        if len(attempts) >= self.retries:
            return False
        attempts.append({"failure": str(result.failure), "reason": result.error or ""})
        self.record.annotate(trial.number, {fields.ATTEMPTS: attempts})
        # A disk is not emptied at once.
        late = len(attempts) - (result.failure is not FailureKind.DISK_FULL)
        pause = RETRY_SECONDS[min(late, len(RETRY_SECONDS) - 1)]
        logger.warning(
            "trial %d: %s; continued in %.0f s (%d of %d)",
            trial.number,
            result.error,
            pause,
            len(attempts),
            self.retries,
        )
        self._waiting.append((time.monotonic() + pause, self.record.now(trial.number)))
        self._tell()
        return True

    def _fail(self, number: int, trial: TrialRecord, result: TrialResult) -> None:
        assert result.error is not None
        kind = result.failure or FailureKind.TRAINING
        self.record.fail(number, result.error, str(kind))
        self._count_failure(trial, kind, result.error)

    def _count_failure(self, trial: TrialRecord, kind: FailureKind, error: str) -> None:
        """Say that a trial has failed, and end the search if it is the baseline or one too many."""
        number = trial.number
        logger.error("trial %d failed: %s", number, error)
        self._failures.append(str(kind))
        if trial.is_baseline:
            self._abort = (
                f"the baseline (trial {number}) failed, so nothing could be compared with it: "
                f"{error}"
            )
        elif len(self._failures) >= self.config.give_up_after:
            kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(self._failures).most_common())
            self._abort = (
                f"{len(self._failures)} trials in a row failed ({kinds}), so the search ends "
                f"before it wastes more; the last one (trial {number}): {error}"
            )


def _about(job: TrialJob) -> dict[str, Any]:
    """What the record keeps of a job."""
    about: dict[str, Any] = {
        fields.COMMANDS: [list(run.command) for run in job.runs],
        fields.THREADS: job.threads,
        fields.FOLDER: job.folder,
    }
    starts = [list(run.start) for run in job.runs if run.start]
    if starts:
        about |= {fields.STARTS: starts, fields.WARM: bool(job.needs)}
    return about


def _how_made(path: Path) -> str:
    """How a file that trials start from is made again, as far as that is known."""
    commands = path.parent.parent.parent / COMMANDS_FILE
    if path.parent.name == START and commands.is_file():
        return (
            f", or train the baseline again (remove the checkpoints of {path.parent}, and run the "
            f"line of {commands} that trains into it)"
        )
    if path.name == CALIBRATION_FILE:
        return ", or remove what is there, as it is made again"
    return ""
