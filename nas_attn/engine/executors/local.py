"""Run trials as sub-processes on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors.ahead import SeedsAhead
from nas_attn.engine.executors.gpus import check_workers, seen_gpus, share_gpus, visible_gpus
from nas_attn.engine.executors.places import Places
from nas_attn.engine.loop import SearchLoop
from nas_attn.machine import cpu_count
from nas_attn.trials.job import TrialJob, TrialResult
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.runner import TrialRun

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
NO_GPU = ""
"""The value of CUDA_VISIBLE_DEVICES with which a process sees none."""


class LocalExecutor:
    """Runs several trials at a time, each a fairseq-train sub-process.

    Where there is room and no trial that could begin, seeds of one trial are trained side by side.

    Args:
        config: Number of workers, and whether trainings are forked from a process that has fairseq
            ready.
        resources: Resources of one trial.

    Raises:
        UsageError: this process has not so many GPUs.
    """

    frees_machine = True

    def __init__(self, config: ExecutionConfig, resources: ResourcesConfig) -> None:
        self.config = config
        if resources.gpus > 0:
            names = visible_gpus()
            devices, share = share_gpus(names, resources.gpus)
            room = len(devices) * share
            self.workers = config.workers or _as_cpus_allow(room, resources.cpus)
            check_workers(self.workers, names, resources.gpus, room)
            self._places = Places(devices, share, self.workers)
        else:
            self.workers = config.workers or max(1, cpu_count() // resources.cpus)
            # fairseq would start a process on every GPU that it sees, in each trial.
            self._places = Places([NO_GPU], self.workers, self.workers)
            seen = seen_gpus()
            if seen:
                logger.warning(
                    "trials train on CPUs, as resources.gpus is 0, though this process may use "
                    "GPUs: %s",
                    ", ".join(seen),
                )
        if self.workers * resources.cpus > cpu_count():
            logger.warning(
                "%d trials at a time with %d CPU threads each are more than the %d CPUs there are: "
                "each will be slower than alone",
                self.workers,
                resources.cpus,
                cpu_count(),
            )

    def run(self, loop: SearchLoop) -> None:
        """Run until the search is over. An exception stops all trials first."""
        launcher: Launcher = ForkServer() if self.config.fork_server else ColdLauncher()
        running: dict[int, TrialRun] = {}
        waiting: dict[int, TrialJob] = {}
        ahead = SeedsAhead(self._places, launcher)
        try:
            while running or waiting or not loop.is_over():
                for job, device in self._startable(loop, waiting):
                    running[job.number] = TrialRun(job, device=device, launcher=launcher)
                ahead.fill(running.values(), may_stop=loop.may_stop)
                ahead.poll()
                for number, trial in list(running.items()):
                    if _advance(loop, trial):
                        del running[number]
                        self._places.leave(number)
                        ahead.end(number)
                time.sleep(POLL_SECONDS)
        finally:
            ahead.stop()
            for trial in running.values():
                trial.stop()
            launcher.close()

    def _startable(
        self, loop: SearchLoop, waiting: dict[int, TrialJob]
    ) -> Iterator[tuple[TrialJob, str | None]]:
        """The jobs that begin now, each with its GPUs, one after the other.

        Args:
            loop: Loop of the search.
            waiting: Jobs that wait for GPUs of their own, by number of the trial.
        """
        while True:
            free = self._places.next_alone()
            if free is not None:
                job, device = waiting.pop(free[0]), free[1]
                if not loop.is_mine(job.number):  # it may have waited for long
                    loop.finish(job.number, TrialResult())
                    self._places.leave(job.number)
                    continue
            elif self._places.has_room and (new := loop.next_job()) is not None:
                if new.alone:
                    waiting[new.number] = new
                    self._places.wait_alone(new.number, all_places=new.has_machine)
                    continue
                job, device = new, self._places.take(new.number)
            else:
                return
            if device:
                loop.placed(job.number, device)
            yield job, device


def _as_cpus_allow(room: int, cpus: int) -> int:
    """Trials at a time of those that the GPUs have room for; one at least."""
    allowed = max(1, cpu_count() // cpus)
    if allowed >= room:
        return room
    logger.warning(
        "%d trials fit on the GPUs at a time, but %d CPUs with %d threads a trial (resources.cpus) "
        "allow %d; execution.workers sets another number",
        room,
        cpu_count(),
        cpus,
        allowed,
    )
    return allowed


def _advance(loop: SearchLoop, trial: TrialRun) -> bool:
    """Tell the loop what a trial says; returns whether the trial has ended."""
    number = trial.job.number
    for news in trial.poll():
        if not loop.progress(number, news):
            trial.stop()
            loop.finish(number, trial.result or trial.spent())
            return True
    if trial.result is None:
        loop.trains(number, trial.updates())
        return False
    loop.finish(number, trial.result)
    return True
