"""Run one trial: a fairseq-train sub-process for each of its seeds, one after the other.

Before it comes, if the job says so, a command that makes the checkpoint to start from; after it an
evaluation for each seed, and measurements of decoding. `TrialRun`
never blocks: an executor polls it. What a training says is read from the report file that the
plugin's task appends to, so a training that is continued keeps what it reported before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import shutil
import signal
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import IO, Any

from nas_attn.attention.pruning import Phase
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.prune import prune_checkpoint
from nas_attn.masking import mask
from nas_attn.shell import shell_text
from nas_attn.trials.failures import (
    Failure,
    FailureKind,
    TrialFileError,
    count_oom_kills,
    failure_after,
    failure_of_error,
)
from nas_attn.trials.processes.holders import holders_text
from nas_attn.trials.processes.launch import ColdLauncher, Launcher, Running
from nas_attn.trials.scores import (
    PLAN_FILE,
    REPORT_FILE,
    STATE_FILE,
    Report,
    checkpoint_is_whole,
    end_of_log,
    is_of_another_plan,
    parse_decoding_seconds,
    parse_scores,
    read_state,
    size_of,
)

logger = logging.getLogger(__name__)

LOG_FILE, TEST_LOG_FILE, MEASURE_LOG_FILE = "train.log", "test.log", "measure.log"
TEST_LOSS_LOG_FILE = "test_loss.log"
START_LOG_FILE = "start.log"
COMMANDS_FILE, ERROR_FILE = "commands.sh", "error.log"
LOCK_FILE = "training.lock"
CHECKPOINTS, START = "checkpoints", "start"
LAST, BEST, PRUNED = "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_pruned.pt"
CHECKPOINT = "{checkpoint}"
"""Stands in an evaluation or measurement for the best checkpoint of its seed, pruned if it is."""
SETTLED = Phase.SETTLED.name.lower()
STOP_GRACE_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""How often at most the files of a process are looked at to see whether it hangs."""
SAY_SECONDS = 60.0
"""How often a trial says that it waits for its folder."""

MODULES = {
    "fairseq-train": "fairseq_cli.train",
    "fairseq-generate": "fairseq_cli.generate",
    "fairseq-eval-lm": "fairseq_cli.eval_lm",
    "fairseq-validate": "fairseq_cli.validate",
    "nas-attn": "nas_attn.cli.main",
    "nas-attn-measure": "nas_attn.fairseq_tools.measure",
    "nas-attn-replay": "nas_attn.simulation.replay",
}


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One training of a trial.

    Args:
        seed: of fairseq-train.
        folder: where it keeps report, logs and checkpoints.
        command: the training.
        evaluation: the command that tests what was trained and pruned; empty for none. An argument
            `CHECKPOINT` becomes the path of the checkpoint.
        test_loss: the command that measures the job's metric on the test side, as `evaluation`.
        start: a training or a conversion that makes, in the folder `START`, the checkpoint that the
            training starts from; empty for none.
    """

    seed: int
    folder: str
    command: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    test_loss: tuple[str, ...] = ()
    start: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SeedRun:
        names = ("command", "evaluation", "test_loss", "start")
        commands = {name: tuple(data.get(name, ())) for name in names}
        return cls(**{**data, **commands})

    @property
    def is_trained_first(self) -> bool:
        """Whether its start is a training of its own."""
        return self.start[:1] == ("fairseq-train",)


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """All that is needed to run a trial, on this machine or another.

    Args:
        number: the trial's number in the record.
        folder: where it keeps plan, commands, logs and checkpoints.
        metric: name of the validation metric.
        maximise: whether it is better when higher.
        parameters: total parameters that the model must turn out to have.
        runs: one training for each seed.
        threads: CPU threads of a training.
        plan: the attention plan as JSON, to be kept in the folder.
        data_folder: prepared data that must be there; empty if none is asked for.
        hang_seconds: a process that writes nothing for so long is stopped; None never stops one.
        measure: a fairseq-generate command whose decoding is timed on the first seed's checkpoint;
            empty for none. An argument `CHECKPOINT` becomes its path.
        measure_runs: how often it is timed; the median counts.
        last_epoch: in which a training ends; None if it has no such limit.
        last_update: after which it ends; None if it has no such limit.
        needs: files of another trial that must be there.
        figures: names of validation metrics that are kept of the first seed's last validation.
    """

    number: int
    folder: str
    metric: str
    parameters: int
    runs: tuple[SeedRun, ...]
    threads: int = 1
    plan: dict[str, Any] = field(default_factory=dict)
    data_folder: str = ""
    hang_seconds: float | None = None
    measure: tuple[str, ...] = ()
    measure_runs: int = 3
    maximise: bool = False
    last_epoch: int | None = None
    last_update: int | None = None
    needs: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrialJob:
        runs = tuple(SeedRun.from_json(run) for run in data["runs"])
        lists = {name: tuple(data.get(name, ())) for name in ("measure", "needs", "figures")}
        return cls(**{**data, "runs": runs, **lists})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One validation of a running trial.

    Args:
        seed: of the training.
        num_updates: of the training so far.
        loss: value of the job's metric.
        validation: how many validations that seed has had, this one included.
        settled: nothing more will be pruned: what was measured is the model that is left.
        seed_index: place of the seed among the job's runs, 0 for the first.
        is_last: the trial is in its last epoch, so that ending it saves next to nothing.
        is_start: of the training whose checkpoint the trial's own starts from; nothing is judged
            by it.
    """

    seed: int
    num_updates: int
    loss: float
    validation: int = 1
    settled: bool = True
    seed_index: int = 0
    is_last: bool = False
    is_start: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended.

    Args:
        losses: the best validation loss of each seed, in the order of the job's runs; after
            pruning, if there is any.
        plans: what pruning made of the plan, for each seed; empty if the plan prunes nothing.
        seconds: time spent training, all seeds and earlier attempts included.
        error: why there is no result; None if there is one.
        failure: the kind of the error; None if there is a result.
        measured: figures of the trained model by name; `decoding_seconds` is for a sentence.
        tests: scores by name, for each seed; empty if the job evaluates nothing.
        updates: of all trainings of the trial.
    """

    losses: tuple[float, ...] = ()
    plans: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    error: str | None = None
    failure: FailureKind | None = None
    measured: dict[str, float] = field(default_factory=dict)
    tests: tuple[dict[str, float], ...] = ()
    updates: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrialResult:
        lists = {name: tuple(data[name]) for name in ("losses", "plans", "tests")}
        failure = None if data["failure"] is None else FailureKind(data["failure"])
        return cls(**{**data, **lists, "failure": failure})

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)


class StepKind(Enum):
    """What a process of a trial is for; the value is the name of its log."""

    START = START_LOG_FILE
    TRAIN = LOG_FILE
    EVALUATE = TEST_LOG_FILE
    TEST_LOSS = TEST_LOSS_LOG_FILE
    MEASURE = MEASURE_LOG_FILE


@dataclass(frozen=True)
class Step:
    """One process of a trial: what for, and on which run."""

    kind: StepKind
    run: SeedRun
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return Path(self.run.folder)

    @property
    def log(self) -> Path:
        return self.folder / self.kind.value

    @property
    def trains(self) -> bool:
        return self.kind is StepKind.TRAIN or (
            self.kind is StepKind.START and self.run.is_trained_first
        )

    @property
    def checkpoints(self) -> Path:
        """Where it keeps its checkpoints."""
        return self.folder / (START if self.kind is StepKind.START else CHECKPOINTS)

    @property
    def report_folder(self) -> Path:
        """Where its report is, if it trains."""
        return self.checkpoints if self.kind is StepKind.START else self.folder

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.command[0]} (seed {self.run.seed})"


@dataclass
class _Activity:
    """A step's process, and what there is to know about it while it runs.

    Args:
        step: what it is for.
        running: the process.
        log_start: size of the log when it started, in bytes; what is before belongs to others.
        oom_kills: of the control group when it started, None if unknown.
        failure: why it is being stopped; None as long as it may run.
        kill_at: when it is killed, if it has not heeded the request to end.
    """

    step: Step
    running: Running
    log_start: int
    oom_kills: int | None
    started: float = field(default_factory=time.monotonic)
    failure: Failure | None = None
    kill_at: float = math.inf
    watched_at: float = -math.inf
    changed_at: float = field(default_factory=time.monotonic)
    _files: tuple[Any, ...] = ()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def log_text(self) -> str:
        """The end of what the process has printed."""
        return end_of_log(self.step.log, self.log_start)

    def quiet_seconds(self) -> float:
        """For how long the process has written nothing."""
        now = time.monotonic()
        if now - self.watched_at >= WATCH_SECONDS:
            self.watched_at = now
            files = _traces(self.step)
            if files != self._files:
                self._files, self.changed_at = files, now
        return now - self.changed_at

    def was_oom_killed(self) -> bool:
        """Whether the kernel killed any process of the control group for memory meanwhile."""
        now = count_oom_kills()
        return self.oom_kills is not None and now is not None and now > self.oom_kills

    def ask_to_end(self, failure: Failure | None = None) -> None:
        """Ask the process group to end; it is killed if it has not after a grace."""
        self.failure = failure
        self.kill_at = time.monotonic() + STOP_GRACE_SECONDS
        self.running.signal(signal.SIGTERM)


class TrialRun:
    """A trial in progress.

    Which step is next follows from what the folders of its runs say, so a trial that was stopped,
    on this machine or another, goes on after the last step that was finished. A poll starts the
    next step, or looks at the one that runs, or takes over what it has made; after the last one
    there is a result, and after a failure, too.

    Args:
        job: what to run.
        device: value of CUDA_VISIBLE_DEVICES for its processes; None leaves it as it is.
        launcher: starts them; each from nothing, if not given.
    """

    def __init__(
        self, job: TrialJob, device: str | None = None, launcher: Launcher | None = None
    ) -> None:
        self.job = job
        self.device = device
        self.launcher = launcher or ColdLauncher()
        self.result: TrialResult | None = None
        self._activity: _Activity | None = None
        self._say_at = 0.0
        self._reports: dict[Path, Report] = {}
        self._told: dict[Path, set[int]] = {}

    def poll(self) -> list[Progress]:
        """Move on as far as possible without waiting; returns the validations since last time."""
        if self.result is not None:
            return []
        news: list[Progress] = []
        try:
            activity = self._activity
            if activity is None:
                self._start_next()
            else:
                code = activity.running.poll()
                news = self._news(activity.step)  # after the poll, or the last ones are missed
                self._look_at(activity, code)
        except Exception as error:  # ends this trial, and never the search
            self._fail_by(error)
        return news

    def stop(self) -> None:
        """End the process that is running; what it saved stays, so the trial can continue."""
        activity = self._activity
        if activity is None:
            return
        activity.ask_to_end()
        if activity.running.wait(STOP_GRACE_SECONDS) is None:
            activity.running.signal(signal.SIGKILL)
            activity.running.wait(STOP_GRACE_SECONDS)
        self._close(activity)

    def _fail_by(self, error: Exception) -> None:
        """End the trial by an error of our own code, with its process."""
        host = socket.gethostname()
        failure = failure_of_error(error, f"trial {self.job.number} on {host}")
        if failure.kind is FailureKind.INTERNAL:
            logger.error("trial %d", self.job.number, exc_info=error)
            path = Path(self.job.folder) / ERROR_FILE
            with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as log:
                log.write(mask("".join(traceback.format_exception(error))))
        try:
            self.stop()
        except Exception as other:
            logger.error("a process of trial %d may live on: %r", self.job.number, other)
        self._activity = None
        self._fail(replace(failure, message=mask(failure.message)))

    def _start_next(self) -> None:
        if is_of_another_plan(Path(self.job.folder), self.job.plan):
            raise TrialFileError(
                f"{self.job.folder} holds files of another plan, and not of trial "
                f"{self.job.number}: they belong to another record; move them away"
            )
        if not (Path(self.job.folder) / PLAN_FILE).is_file():
            write_trial_files(self.job)
        step = self._next_step()
        if step is None:
            self.result = self._success()
            return
        data = self.job.data_folder
        if data and not Path(data).is_dir():
            message = (
                f"{socket.gethostname()} has no data folder {data}: share the folder with every "
                "node, or set execution.transfer to object_store"
            )
            self._fail(Failure(FailureKind.NO_DATA, message))
            return
        if step.kind is StepKind.START or not step.run.start:
            lacking = [path for path in self.job.needs if not Path(path).is_file()]
            if lacking:
                message = (
                    f"{socket.gethostname()} has no file {lacking[0]}, which trial "
                    f"{self.job.number} starts from"
                )
                self._fail(Failure(FailureKind.NO_CHECKPOINT, message))
                return
        self._start(step)

    def _next_step(self) -> Step | None:
        """The first step that is not finished; None if all are."""
        job = self.job
        for run in job.runs:
            state = _state(run)
            if run.start and "started" not in state:
                return Step(StepKind.START, run, run.start)
            if not state.get("finished", False):
                return Step(StepKind.TRAIN, run, run.command)
            if run.evaluation and "test" not in state:
                return Step(StepKind.EVALUATE, run, _on_checkpoint(run.evaluation, run))
            if run.test_loss and "test_loss" not in state:
                return Step(StepKind.TEST_LOSS, run, _on_checkpoint(run.test_loss, run))
        if job.measure and len(_decoding_seconds(job.runs[0])) < job.measure_runs:
            first = job.runs[0]
            return Step(StepKind.MEASURE, first, _on_checkpoint(job.measure, first))
        return None

    def _start(self, step: Step) -> None:
        step.folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(step.folder / LOCK_FILE)
        if lock is None:
            self._say_locked(step)
            return  # what an earlier driver left is about to die; poll again
        with lock:  # held on by the process alone
            if step.trains:
                step.checkpoints.mkdir(parents=True, exist_ok=True)
                _repair_checkpoints(step.checkpoints)
            log_start = size_of(step.log)
            oom_kills = count_oom_kills()
            running = self.launcher.start(
                executable_form(step.command),
                environment=self._environment(step),
                log=step.log,
                keep_open=lock.fileno(),
            )
        self._activity = _Activity(step, running, log_start, oom_kills)

    def _say_locked(self, step: Step) -> None:
        """Say now and then who is in the way; a stopped process is so for ever."""
        now = time.monotonic()
        self._say_at = self._say_at or now + SAY_SECONDS
        if now >= self._say_at:
            self._say_at = now + SAY_SECONDS
            logger.warning(
                "trial %d waits for its folder %s: %s",
                self.job.number,
                step.folder,
                holders_text(step.folder / LOCK_FILE),
            )

    def _environment(self, step: Step) -> dict[str, str]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.job.threads),
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
        if step.trains:
            environment["NAS_ATTN_REPORT"] = str(step.report_folder / REPORT_FILE)
        if self.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.device
        return environment

    def _look_at(self, activity: _Activity, code: int | None) -> None:
        """Take over what a process has made, if it has ended; else see that it goes on well."""
        if code is None:
            if activity.failure is None:
                failure = self._failure_while_running(activity)
                if failure is not None:
                    activity.ask_to_end(failure)
            elif time.monotonic() > activity.kill_at:
                activity.running.signal(signal.SIGKILL)
            return
        failure = activity.failure or self._failure_after(activity, code)
        self._close(activity)
        if failure is None:
            failure = self._finish(activity)
        if failure is not None:
            self._fail(failure)
        else:
            self._start_next()

    def _failure_while_running(self, activity: _Activity) -> Failure | None:
        step, limit = activity.step, self.job.hang_seconds
        if step.trains:
            failure = self._not_finite(step)
            if failure is not None:
                return failure
        if limit is not None and (quiet := activity.quiet_seconds()) >= limit:
            message = f"{step.name} was stopped: it had written nothing for {quiet:.0f} s"
            return Failure(FailureKind.HUNG, message)
        return None

    def _failure_after(self, activity: _Activity, code: int) -> Failure | None:
        step = activity.step
        if code != 0:
            oom_killed = activity.was_oom_killed()
            return failure_after(step.name, code, activity.log_text(), oom_killed=oom_killed)
        if not step.trains:
            return None
        failure = self._not_finite(step)
        if failure is not None:
            return failure
        message = self._fault_of_report(step)
        return None if message is None else Failure(FailureKind.TRAINING, message)

    def _report(self, folder: Path) -> list[dict[str, Any]]:
        """The validations of a training so far."""
        return self._reports.setdefault(folder, Report(folder)).lines()

    def _not_finite(self, step: Step) -> Failure | None:
        """A loss that is no number does not heal, so one such validation is enough."""
        for line in self._report(step.report_folder):
            loss = line["metrics"].get(self.job.metric, 0.0)
            if not math.isfinite(loss):
                message = f"the validation {self.job.metric} of seed {step.run.seed} is {loss}"
                return Failure(FailureKind.NOT_FINITE, message)
        return None

    def _fault_of_report(self, step: Step) -> str | None:
        """What the report of a training that ended without an error lacks."""
        lines = self._report(step.report_folder)
        if not lines:
            return f"{step.name} ended without a validation"
        phase = lines[-1].get("phase")
        if not _is_settled(lines[-1]):
            return (
                f"the training (seed {step.run.seed}) ended before the vote was over ({phase}): "
                "vote earlier or train longer"
            )
        if self.job.metric not in lines[-1]["metrics"]:
            known = ", ".join(sorted(lines[-1]["metrics"]))
            return f"fairseq logged no metric {self.job.metric!r}; it logged {known}"
        built = lines[-1]["parameters"].get("total")
        if built != self.job.parameters:
            return f"counted {self.job.parameters} parameters, but fairseq built {built}"
        return None

    def _finish(self, activity: _Activity) -> Failure | None:
        """Write down what a step has made, so that it is not done again."""
        step = activity.step
        state = _state(step.run)
        try:
            if step.kind is StepKind.START:
                state["started"] = True
            elif step.kind is StepKind.TRAIN:
                if self._report(step.folder)[-1].get("phase") is not None:
                    state["plan"] = _prune(step.folder)
                state["finished"] = True
            elif step.kind is StepKind.EVALUATE:
                state["test"] = parse_scores(activity.log_text())
            elif step.kind is StepKind.TEST_LOSS:
                scores = parse_scores(activity.log_text())
                if self.job.metric not in scores:
                    raise NasAttnError(f"it printed no {self.job.metric}, but {', '.join(scores)}")
                state["test_loss"] = {self.job.metric: scores[self.job.metric]}
            else:
                seconds = parse_decoding_seconds(activity.log_text())
                state["decoding_seconds"] = [*_decoding_seconds(step.run), seconds]
        except NasAttnError as error:
            return Failure(FailureKind.TRAINING, f"{step.name}: {error}")
        _write_json(step.folder / STATE_FILE, state)
        return None

    def _close(self, activity: _Activity) -> None:
        """Let go of a process that has ended, with all it has started; add up its time, but not
        that of tests and measurements."""
        self._activity = None
        activity.running.signal(signal.SIGKILL)
        if activity.step.kind in (StepKind.START, StepKind.TRAIN):
            try:
                state = {"finished": False, **_state(activity.step.run)}
                state["seconds"] = state.get("seconds", 0.0) + activity.seconds
                _write_json(activity.step.folder / STATE_FILE, state)
            except (OSError, TrialFileError) as error:  # no reason to lose what is saved
                logger.warning("the time of %s is not kept: %s", activity.step.name, error)

    def _fail(self, failure: Failure) -> None:
        self.result = replace(self.spent(), error=failure.message, failure=failure.kind)

    def _success(self) -> TrialResult:
        runs = self.job.runs
        states = [_state(run) for run in runs]
        decoding = _decoding_seconds(runs[0])
        measured = {"decoding_seconds": statistics.median(decoding)} if decoding else {}
        if self.job.figures:
            lines = self._report(Path(runs[0].folder))
            last = lines[-1]["metrics"] if lines else {}
            for name in self.job.figures:
                if not math.isfinite(last.get(name, math.nan)):
                    raise TrialFileError(f"{runs[0].folder}/{REPORT_FILE} holds no {name}")
                measured[name] = last[name]
        return replace(
            self.spent(),
            losses=tuple(self._best_loss(run) for run in runs),
            plans=tuple(state["plan"] for state in states if state.get("plan") is not None),
            measured=measured,
            tests=tuple(
                {**state.get("test_loss", {}), **state["test"]}
                for state in states
                if "test" in state
            ),
        )

    def _news(self, step: Step) -> list[Progress]:
        if not step.trains:
            return []
        run, told = step.run, self._told.setdefault(step.report_folder, set())
        is_start = step.kind is StepKind.START
        news = []
        for count, line in enumerate(self._report(step.report_folder), start=1):
            update = line["num_updates"]
            if update in told or self.job.metric not in line["metrics"]:
                continue
            told.add(update)
            news.append(
                Progress(
                    seed=run.seed,
                    num_updates=update,
                    loss=line["metrics"][self.job.metric],
                    validation=count,
                    settled=_is_settled(line),
                    seed_index=self.job.runs.index(run),
                    is_last=run == self.job.runs[-1] and self._is_at_end(line) and not is_start,
                    is_start=is_start,
                )
            )
        return news

    def _is_at_end(self, line: dict[str, Any]) -> bool:
        epoch, updates = line.get("epoch") or 0, line["num_updates"]
        last_epoch, last_update = self.job.last_epoch, self.job.last_update
        return epoch >= (last_epoch or math.inf) or updates >= (last_update or math.inf)

    def _best_loss(self, run: SeedRun) -> float:
        """Of the model that is left: before pruning it was another one.

        Raises:
            TrialFileError: the report of a training that has ended does not say.
        """
        lines = [line for line in self._report(Path(run.folder)) if _is_settled(line)]
        losses = [line["metrics"].get(self.job.metric, math.nan) for line in lines]
        finite: list[float] = [loss for loss in losses if math.isfinite(loss)]
        if not finite:
            raise TrialFileError(
                f"{run.folder}/{REPORT_FILE} holds no {self.job.metric}, but the training has ended"
            )
        return max(finite) if self.job.maximise else min(finite)

    def spent(self) -> TrialResult:
        """Time and updates so far, earlier attempts included, without the process that runs now.

        What cannot be read is not counted.
        """
        updates, seconds = 0, 0.0
        for run in self.job.runs:
            folder = Path(run.folder)
            for reported in (folder, *((folder / START,) if run.is_trained_first else ())):
                with contextlib.suppress(OSError, TrialFileError):
                    lines = self._report(reported)
                    updates += max((line["num_updates"] for line in lines), default=0)
            with contextlib.suppress(OSError, TrialFileError):
                seconds += _state(run).get("seconds", 0.0)
        return TrialResult(seconds=seconds, updates=updates)


def executable_form(command: Sequence[str]) -> list[str]:
    """`fairseq-train ...` and its like as run by this very Python, whatever PATH says.

    Raises:
        NasAttnError: the command is unknown.
    """
    module = MODULES.get(command[0])
    if module is None:
        raise NasAttnError(f"cannot run {command[0]!r}; there are {', '.join(MODULES)}")
    return [sys.executable, "-m", module, *command[1:]]


def write_trial_files(job: TrialJob) -> None:
    """Keep a trial's plan and trainings in its folder, for people."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    commands = "".join(
        shell_text(command, job.threads) + "\n"
        for run in job.runs
        for command in (run.start, run.command)
        if command
    )
    (folder / COMMANDS_FILE).write_text(commands, encoding="utf-8")
    _write_json(folder / PLAN_FILE, job.plan)


def best_checkpoint(run_folder: Path) -> Path:
    """Where a training keeps the checkpoint of its best validation, pruned if it is."""
    pruned = run_folder / CHECKPOINTS / PRUNED
    return pruned if pruned.is_file() else run_folder / CHECKPOINTS / BEST


def _on_checkpoint(command: Sequence[str], run: SeedRun) -> tuple[str, ...]:
    checkpoint = str(best_checkpoint(Path(run.folder)))
    return tuple(checkpoint if part == CHECKPOINT else part for part in command)


def _traces(step: Step) -> tuple[Any, ...]:
    """What changes when a step's process gets anywhere: sizes of its files, its checkpoints."""
    checkpoints = []
    try:
        with os.scandir(step.checkpoints) as entries:
            for entry in entries:
                stat = entry.stat()
                checkpoints.append((entry.name, stat.st_size, stat.st_mtime_ns))
    except OSError:
        pass  # not yet made, or renamed as we look; the next look will tell
    return (size_of(step.log), size_of(step.report_folder / REPORT_FILE), *sorted(checkpoints))


def _is_settled(line: dict[str, Any]) -> bool:
    return line.get("phase") in (None, SETTLED)


def _prune(run_folder: Path) -> dict[str, Any]:
    """Cut what was masked out of the best checkpoint; returns the plan of what is left."""
    folder = run_folder / CHECKPOINTS
    return prune_checkpoint(folder / BEST, folder / PRUNED).plan.to_json()


def _state(run: SeedRun) -> dict[str, Any]:
    """What is finished of a run, as `read_state` gives it."""
    return read_state(Path(run.folder))


def _decoding_seconds(run: SeedRun) -> list[float]:
    seconds: list[float] = _state(run).get("decoding_seconds", [])
    return seconds


def _lock(path: Path) -> IO[str] | None:
    """Lock a training's folder for as long as the file is open in any process; None if taken."""
    lock = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _repair_checkpoints(folder: Path) -> None:
    """Make what a killed training left loadable: drop a half-written last, fall back to best."""
    last, best = folder / LAST, folder / BEST
    for path in (last, best):
        if path.is_file() and not checkpoint_is_whole(path):
            logger.warning("%s was cut off while it was written; it is not used", path)
            path.unlink()
    if best.is_file() and not last.is_file():
        shutil.copyfile(best, last)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
