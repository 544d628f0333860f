"""What a Ray worker executes: one job after the other."""

from __future__ import annotations

import json
import logging
import socket
import time
from typing import Any

import ray
from ray import tune

from nas_attn.engine.executors.transfer import DatasetArchive, NodeWorkspace
from nas_attn.trials.failures import FailureKind, kind_of_error
from nas_attn.trials.job import TrialJob, TrialResult, Validation
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.runner import TrialRun

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class TrainTrial(tune.Trainable):
    """Runs jobs, one after the other; this is what a Ray worker executes.

    A step is a validation or the end, reported as JSON since Tune flattens what is nested, or
    before all others which GPUs the trial has. The process is used again for the next trial, so
    fairseq is imported once in it; trainings themselves are processes of their own.
    """

    def setup(
        self,
        config: dict[str, Any],
        warm: bool = True,
        archive: DatasetArchive | None = None,
        sync: Any = None,
    ) -> None:
        self._launcher: Launcher = ForkServer() if warm else ColdLauncher()
        self._files = NodeWorkspace(archive, sync)
        self._begin(config)

    def step(self) -> dict[str, Any]:
        try:
            return self._advance()
        except Exception as error:  # of this node; Tune would pass on that there was one, not which
            logger.exception("trial %d", self._job.number)
            message = f"trial {self._job.number} on {socket.gethostname()}: {error!r}"
            failure = kind_of_error(error) or FailureKind.WORKER_LOST
            host_memory = failure is FailureKind.OUT_OF_MEMORY
            return _ended(TrialResult(error=message, failure=failure, host_memory=host_memory))

    def cleanup(self) -> None:
        self._leave()
        self._launcher.close()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._job = TrialJob.from_json(config["job"])
        self._trial: TrialRun | None = None
        self._news: list[Validation] = []

    def _advance(self) -> dict[str, Any]:
        """Go on to the next validation or the end."""
        if self._trial is None:
            # Without any a trial sees none; Ray alone would leave it all of the node.
            gpus = ",".join(ray.get_runtime_context().get_accelerator_ids()["GPU"])
            job = self._files.localise(self._job)
            self._trial = TrialRun(job, device=gpus, launcher=self._launcher)
            if gpus:
                return {"placed": f"{gpus} of {socket.gethostname()}"}
        trial = self._trial
        while not self._news and trial.result is None:
            self._news += trial.poll()
            self._files.send_back()
            if not self._news and trial.result is None:
                time.sleep(POLL_SECONDS)
        if self._news:
            return {"progress": json.dumps(self._news.pop(0).to_json())}
        assert trial.result is not None
        self._files.hand_over()
        return _ended(trial.result)

    def _leave(self) -> None:
        """Stop what still runs of a trial that is over; its files are of use, but not needed."""
        if self._trial is not None:
            self._trial.stop()
        try:
            self._files.hand_over()
        except Exception as error:
            logger.warning("files of trial %d stay behind: %r", self._job.number, error)

    # Nothing is saved: a trial's own checkpoints are fairseq's.
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


def _ended(result: TrialResult) -> dict[str, Any]:
    return {"done": True, "ended": json.dumps(result.to_json())}
