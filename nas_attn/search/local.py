"""Run trials as sub-processes on this machine."""

from __future__ import annotations

import os
import time

from nas_attn.search.config import ExecutionConfig, ResourcesConfig
from nas_attn.search.driver import Conductor
from nas_attn.training.launch import ColdLauncher, Launcher, WarmLauncher
from nas_attn.training.worker import TrialRun

POLL_SECONDS = 0.1


def count_workers(workers: int | None, resources: ResourcesConfig) -> int:
    """Trials at a time on this machine: as configured, else what its CPUs and GPUs allow."""
    if workers is not None:
        return workers
    if resources.gpus > 0:
        import torch

        return max(1, int(torch.cuda.device_count() / resources.gpus))
    return max(1, len(os.sched_getaffinity(0)) // resources.cpus)


class LocalExecutor:
    """Runs several trials at a time, each a fairseq-train sub-process.

    Args:
        config: how many, and whether trainings are forked from a process that has fairseq ready.
        resources: of one trial.
    """

    def __init__(self, config: ExecutionConfig, resources: ResourcesConfig) -> None:
        self.config = config
        self.resources = resources
        self.workers = count_workers(config.workers, resources)

    def run(self, conductor: Conductor) -> None:
        """Run until the search is over. An exception stops all trials first."""
        launcher: Launcher = WarmLauncher() if self.config.warm else ColdLauncher()
        running: dict[int, TrialRun] = {}
        try:
            while running or not conductor.is_over():
                self._fill(conductor, running, launcher)
                for slot, trial in list(running.items()):
                    if _advance(conductor, trial):
                        del running[slot]
                time.sleep(POLL_SECONDS)
        finally:
            for trial in running.values():
                trial.stop()
            launcher.close()

    def _fill(self, conductor: Conductor, running: dict[int, TrialRun], launcher: Launcher) -> None:
        for slot in range(self.workers):
            if slot not in running:
                job = conductor.next_job()
                if job is None:
                    return
                running[slot] = TrialRun(job, device=self._device(slot), launcher=launcher)

    def _device(self, slot: int) -> str | None:
        """GPUs are dealt out to slots: whole ones in turn, fractions side by side."""
        gpus = self.resources.gpus
        if gpus <= 0:
            return None
        if gpus < 1:
            return str(int(slot * gpus + 1e-9))
        return ",".join(str(slot * int(gpus) + index) for index in range(int(gpus)))


def _advance(conductor: Conductor, trial: TrialRun) -> bool:
    """Tell the conductor what a trial says; returns whether the trial has ended."""
    number = trial.job.number
    for news in trial.poll():
        if not conductor.progress(number, news):
            trial.stop()
            conductor.finish(number, trial.result or trial.spent())
            return True
    if trial.result is None:
        return False
    conductor.finish(number, trial.result)
    return True
