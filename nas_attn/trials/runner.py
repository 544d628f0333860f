"""Run one trial: a fairseq-train sub-process for each of its seeds, one after the other.

Before it comes, if the job says so, a command that makes the checkpoint to start from; after it one
that cuts out what was voted out, an evaluation for each seed, and measurements of decoding.
`TrialRun` never blocks: an executor polls it. What a training says is read from the report file
that the plugin's task appends to, so a training that is continued keeps what it reported before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
import traceback
from dataclasses import replace
from pathlib import Path

from nas_attn.errors import NasAttnError, TrialFileError
from nas_attn.files import size_of, write_json
from nas_attn.masking import mask
from nas_attn.trials.failures import (
    Failure,
    FailureKind,
    count_oom_kills,
    failure_after,
    failure_of_error,
)
from nas_attn.trials.job import TrialJob, TrialResult, Validation
from nas_attn.trials.layout import (
    ERROR_FILE,
    LOCK_FILE,
    PLAN_FILE,
    PRUNED,
    STATE_FILE,
    is_of_another_plan,
    lock_folder,
    read_state,
    repair_checkpoints,
    write_trial_files,
)
from nas_attn.trials.processes.holders import holders_text
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.processes.programs import executable_form, needs_fairseq
from nas_attn.trials.reports import TrialReports
from nas_attn.trials.scores import parse_decoding_seconds, parse_plan, parse_scores
from nas_attn.trials.steps import Activity, Step, StepKind, decoding_seconds, next_step
from nas_attn.trials.updates import Updates
from nas_attn.validation_log import REPORT_FILE

logger = logging.getLogger(__name__)

RENDEZVOUS = (
    *("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"),
    *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"),
)
"""By these a training on several GPUs would take the whole Slurm job for its own: fairseq waits for
processes on all its nodes, or gives every training of it the same port."""
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
"""By these glibc keeps what is freed. Else tensors of tens of megabytes are mapped anew at every
update, and on a CPU the kernel takes up to a sixth of the time to clear their pages."""
SAY_SECONDS = 60.0
"""How often a trial says that it waits for its folder."""


class TrialRun:
    """A trial in progress.

    Which step is next follows from what the folders of its runs say, so a trial that was stopped,
    on this machine or another, goes on after the last step that was finished. A poll starts the
    next step, or looks at the one that runs, or takes over what it has made; after the last one
    there is a result, and after a failure, too.

    Args:
        job: Job to run.
        device: Value of CUDA_VISIBLE_DEVICES for its processes; None leaves it as it is.
        launcher: Launcher that starts them; each from nothing, if not given.
    """

    def __init__(
        self, job: TrialJob, device: str | None = None, launcher: Launcher | None = None
    ) -> None:
        self.job = job
        self.device = device
        self.launcher = launcher or ColdLauncher()
        self.result: TrialResult | None = None
        self.elsewhere: set[int] = set()
        """Seeds that this process trains beside it, which it waits for."""
        self._activity: Activity | None = None
        self._say_at = 0.0
        self._reports = TrialReports(job)

    def poll(self) -> list[Validation]:
        """Move on as far as possible without waiting; returns the validations since last time."""
        if self.result is not None:
            return []
        news: list[Validation] = []
        try:
            activity = self._activity
            if activity is None:
                self._start_next()
            else:
                code = activity.running.poll()
                # After the poll, or the last ones are missed.
                news = self._reports.news(activity.step)
                self._look_at(activity, code)
        except Exception as error:  # ends this trial, and never the search
            self._fail_by(error)
        return news

    @property
    def at(self) -> int | None:
        """Which of the job's runs its process is for, from 0; None without a process."""
        return None if self._activity is None else self.job.runs.index(self._activity.step.run)

    def updates(self) -> Updates | None:
        """How far the training that runs is, as its log says; None if that is not known."""
        return None if self._activity is None else self._activity.updates()

    def stop(self) -> None:
        """End the process that is running; what it saved stays, so the trial can continue."""
        activity = self._activity
        if activity is None:
            return
        activity.end()
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
        step = next_step(self.job)
        if step is None:
            self.result = self._reports.result()
            return
        data = self.job.data_folder
        if data and not Path(data).is_dir():
            message = (
                f"{socket.gethostname()} has no data folder {data}: share the folder with every "
                "node, or set execution.transfer to object_store"
            )
            self._fail(Failure(FailureKind.NO_DATA, message))
            return
        is_first = step.kind is StepKind.START or not step.run.start
        needed = [path for path in self.job.needs if is_first or path in step.command]
        lacking = [path for path in needed if not Path(path).is_file()]
        if lacking:
            message = (
                f"{socket.gethostname()} has no file {lacking[0]}, which trial {self.job.number} "
                "starts from or is taught by"
            )
            self._fail(Failure(FailureKind.NO_CHECKPOINT, message))
            return
        self._start(step)

    def _start(self, step: Step) -> None:
        step.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(step.folder / LOCK_FILE)
        if lock is None:
            self._say_locked(step)
            return  # what an earlier driver left is about to die; poll again
        with lock:  # held on by the process alone
            if step.trains:
                step.checkpoints.mkdir(parents=True, exist_ok=True)
                repair_checkpoints(step.checkpoints)
            elif step.kind is StepKind.PRUNE:
                # A driver that was killed may not have written down that it was there already.
                (step.checkpoints / PRUNED).unlink(missing_ok=True)
            log_start = size_of(step.log)
            oom_kills = count_oom_kills()
            running = self.launcher.start(
                executable_form(step.command),
                environment=self._environment(step),
                log=step.log,
                keep_open=lock.fileno(),
                with_fairseq=needs_fairseq(step.command),
            )
        self._activity = Activity(step, running, log_start, oom_kills)

    def _say_locked(self, step: Step) -> None:
        """Say now and then who is in the way; a stopped process is so for ever."""
        if step.run.seed in self.elsewhere:
            return
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
            **KEEP_MEMORY,
            **{name: value for name, value in os.environ.items() if name not in RENDEZVOUS},
            "OMP_NUM_THREADS": str(self.job.threads),
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
        if step.trains:
            environment["NAS_ATTN_REPORT"] = str(step.report_folder / REPORT_FILE)
        if self.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.device
        return environment

    def _look_at(self, activity: Activity, code: int | None) -> None:
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

    def _failure_while_running(self, activity: Activity) -> Failure | None:
        step, limit = activity.step, self.job.hang_seconds
        if step.trains:
            failure = self._reports.not_finite(step)
            if failure is not None:
                return failure
        if limit is not None and (quiet := activity.quiet_seconds()) >= limit:
            message = f"{step.name} was stopped: it had written nothing for {quiet:.0f} s"
            return Failure(FailureKind.HUNG, message)
        return None

    def _failure_after(self, activity: Activity, code: int) -> Failure | None:
        step = activity.step
        if code != 0:
            oom_killed = activity.was_oom_killed()
            return failure_after(step.name, code, activity.log_text(), oom_killed=oom_killed)
        if not step.trains:
            return None
        failure = self._reports.not_finite(step)
        if failure is not None:
            return failure
        message = self._reports.fault(step)
        return None if message is None else Failure(FailureKind.TRAINING, message)

    def _finish(self, activity: Activity) -> Failure | None:
        """Write down what a step has made, so that it is not done again."""
        step = activity.step
        state = read_state(step.folder)
        try:
            if step.kind is StepKind.START:
                state["started"] = True
            elif step.kind is StepKind.TRAIN:
                prunes = self._reports.lines(step.folder)[-1].get("phase") is not None
                state["trained" if prunes else "finished"] = True
            elif step.kind is StepKind.PRUNE:
                state["plan"] = parse_plan(activity.log_text()).to_json()
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
                state["decoding_seconds"] = [*decoding_seconds(step.run), seconds]
        except NasAttnError as error:
            return Failure(FailureKind.TRAINING, f"{step.name}: {error}")
        write_json(step.folder / STATE_FILE, state)
        return None

    def _close(self, activity: Activity) -> None:
        """Let go of a process that has ended, with all it has started; add up its time, but not
        that of tests and measurements."""
        self._activity = None
        activity.running.signal(signal.SIGKILL)
        if activity.step.kind in (StepKind.START, StepKind.TRAIN):
            try:
                state = {"finished": False, **read_state(activity.step.folder)}
                state["seconds"] = state.get("seconds", 0.0) + activity.seconds
                write_json(activity.step.folder / STATE_FILE, state)
            except (OSError, TrialFileError) as error:  # no reason to lose what is saved
                logger.warning("the time of %s is not kept: %s", activity.step.name, error)

    def spent(self) -> TrialResult:
        """Time and updates so far, earlier attempts included, without the process that runs now.

        What cannot be read is not counted.
        """
        return self._reports.spent()

    def _fail(self, failure: Failure) -> None:
        self.result = replace(
            self.spent(),
            error=failure.message,
            failure=failure.kind,
            host_memory=failure.host_memory,
        )
