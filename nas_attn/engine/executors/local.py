"""Run trials as sub-processes on this machine."""

from __future__ import annotations

import time

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors.gpus import deal_gpus, visible_gpus
from nas_attn.engine.loop import SearchLoop
from nas_attn.machine import cpu_count
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.runner import TrialRun

POLL_SECONDS = 0.1


class LocalExecutor:
    """Runs several trials at a time, each a fairseq-train sub-process.

    Args:
        config: Number of workers, and whether trainings are forked from a process that has fairseq
            ready.
        resources: Resources of one trial.

    Raises:
        UsageError: this process has not so many GPUs.
    """

    def __init__(self, config: ExecutionConfig, resources: ResourcesConfig) -> None:
        self.config = config
        self._devices: list[str] | None = None
        if resources.gpus > 0:
            self._devices = deal_gpus(visible_gpus(), resources.gpus, config.workers)
            self.workers = len(self._devices)
        else:
            room = max(1, cpu_count() // resources.cpus)
            self.workers = config.workers or room

    def run(self, loop: SearchLoop) -> None:
        """Run until the search is over. An exception stops all trials first."""
        launcher: Launcher = ForkServer() if self.config.fork_server else ColdLauncher()
        running: dict[int, TrialRun] = {}
        try:
            while running or not loop.is_over():
                self._fill(loop, running, launcher)
                for slot, trial in list(running.items()):
                    if _advance(loop, trial):
                        del running[slot]
                time.sleep(POLL_SECONDS)
        finally:
            for trial in running.values():
                trial.stop()
            launcher.close()

    def _fill(self, loop: SearchLoop, running: dict[int, TrialRun], launcher: Launcher) -> None:
        for slot in range(self.workers):
            if slot not in running:
                job = loop.next_job()
                if job is None:
                    return
                device = None if self._devices is None else self._devices[slot]
                running[slot] = TrialRun(job, device=device, launcher=launcher)


def _advance(loop: SearchLoop, trial: TrialRun) -> bool:
    """Tell the loop what a trial says; returns whether the trial has ended."""
    number = trial.job.number
    for news in trial.poll():
        if not loop.progress(number, news):
            trial.stop()
            loop.finish(number, trial.result or trial.spent())
            return True
    if trial.result is None:
        return False
    loop.finish(number, trial.result)
    return True
