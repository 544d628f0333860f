"""Run trials as sub-processes on this machine."""

from __future__ import annotations

import os
import time

from nas_attn.search.config import ExecutionConfig
from nas_attn.search.driver import Conductor
from nas_attn.training.worker import TrialRun

POLL_SECONDS = 0.1


def count_workers(config: ExecutionConfig) -> int:
    """Trials at a time on this machine: as configured, else what its CPUs and GPUs allow."""
    if config.workers is not None:
        return config.workers
    if config.gpus > 0:
        import torch

        return max(1, int(torch.cuda.device_count() / config.gpus))
    return max(1, len(os.sched_getaffinity(0)) // config.threads)


class LocalExecutor:
    """Runs several trials at a time, each a fairseq-train sub-process.

    Args:
        config: how many, and with which resources.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        self.config = config
        self.workers = count_workers(config)

    def run(self, conductor: Conductor) -> None:
        """Run until the conductor has no more jobs. An exception stops all trials first."""
        running: dict[int, TrialRun] = {}
        asking = True
        try:
            while asking or running:
                for slot in range(self.workers):
                    if asking and slot not in running:
                        job = conductor.next_job()
                        if job is None:
                            asking = False
                        else:
                            running[slot] = TrialRun(job, device=self._device(slot))
                for slot, trial in list(running.items()):
                    for news in trial.poll():
                        conductor.progress(trial.job.number, news)
                    if trial.result is not None:
                        del running[slot]
                        conductor.finish(trial.job.number, trial.result)
                time.sleep(POLL_SECONDS)
        finally:
            for trial in running.values():
                trial.stop()

    def _device(self, slot: int) -> str | None:
        """GPUs are dealt out to slots: whole ones in turn, fractions side by side."""
        if self.config.gpus <= 0:
            return None
        if self.config.gpus < 1:
            return str(int(slot * self.config.gpus + 1e-9))
        count = int(self.config.gpus)
        return ",".join(str(slot * count + index) for index in range(count))
