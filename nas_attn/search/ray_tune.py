"""Run trials under Ray Tune, on this machine or on a cluster.

Tune only executes. Proposals come from the conductor through a searcher of our own, results go back
to it, and a search that was interrupted goes on from the Optuna record, not from Tune's files.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from typing import Any

from nas_attn.errors import SearchError
from nas_attn.search.config import ExecutionConfig
from nas_attn.search.driver import Conductor
from nas_attn.training.worker import Progress, TrialJob, TrialResult, TrialRun

# Ray reads these as it is imported: send nothing home, print no tables of its own, let Ctrl-C
# through, and accept a last report that is a result and no validation.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"

import ray
from ray import tune
from ray.tune.search import Searcher

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
OBJECT_STORE_BYTES = 100 * 1024 * 1024
CONNECT_SECONDS = 10.0


def train_trial(config: dict[str, Any]) -> None:
    """Run one job and report to Tune; this is what a Ray worker executes."""
    trial = TrialRun(TrialJob.from_json(config["job"]))
    try:
        while trial.result is None:
            for news in trial.poll():
                report = {"loss": news.loss, "seed": news.seed, "num_updates": news.num_updates}
                tune.report(report)
            time.sleep(POLL_SECONDS)
    finally:
        trial.stop()
    result = trial.result
    tune.report(
        {
            "ended": True,
            "losses": list(result.losses),
            "plans": list(result.plans),
            "seconds": result.seconds,
            "error": result.error,
        }
    )


class ConductorSearcher(Searcher):
    """Lets Tune ask the conductor for jobs and tell it what became of them."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__(metric="loss", mode="min")
        self.conductor = conductor
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        job = self.conductor.next_job()
        if job is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = job.number
        return {"job": job.to_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "num_updates" in result and not result.get("ended"):
            news = Progress(
                seed=result["seed"], num_updates=result["num_updates"], loss=result["loss"]
            )
            self.conductor.progress(self._numbers[trial_id], news)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers.pop(trial_id)
        if result is None or not result.get("ended"):
            ended = TrialResult(error="the Ray worker of the trial died")
        else:
            ended = TrialResult(
                losses=tuple(result["losses"]),
                plans=tuple(result["plans"]),
                seconds=result["seconds"],
                error=result["error"],
            )
        self.conductor.finish(number, ended)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the record is the Optuna study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the record is the Optuna study."""


class RayExecutor:
    """Runs trials under Ray Tune.

    Args:
        config: how many, and with which resources.
        address: of a running Ray cluster; None starts Ray on this machine.
    """

    def __init__(self, config: ExecutionConfig, address: str | None = None) -> None:
        self.config = config
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            # Named "local" explicitly, else Ray joins whatever an earlier crash left behind.
            options |= {"address": "local", "include_dashboard": False}
            options |= {"object_store_memory": OBJECT_STORE_BYTES}
        else:
            _check_reachable(address)
            options["address"] = address
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SearchError(
                f"cannot join Ray at {address or 'this machine'}: {error} (if the cluster asks for "
                "a token, set RAY_AUTH_MODE=token)"
            ) from error
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fits = int(resources.get("CPU", 1) / config.threads)
        if config.gpus > 0:
            fits = min(fits, int(resources.get("GPU", 0) / config.gpus))
        if fits < 1:
            ray.shutdown()
            raise SearchError(
                f"no Ray node has room for a trial of {config.threads} CPUs and {config.gpus} GPUs"
            )
        self.workers = min(fits, config.workers or fits)

    def run(self, conductor: Conductor) -> None:
        """Run until the conductor has no more jobs."""
        resources = {"cpu": self.config.threads, "gpu": self.config.gpus}
        with tempfile.TemporaryDirectory(prefix="nas-attn-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(train_trial, resources),
                tune_config=tune.TuneConfig(
                    search_alg=ConductorSearcher(conductor),
                    num_samples=-1,
                    max_concurrent_trials=self.workers,
                ),
                run_config=tune.RunConfig(storage_path=scratch, verbose=0),
            )
            try:
                tuner.fit()
            finally:
                ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes on an address where nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # such as "auto"
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise SearchError(f"nothing answers at the Ray address {address}: {error}") from None
