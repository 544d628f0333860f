"""The executor that runs trials under Ray Tune."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors.gpus import trials_a_gpu
from nas_attn.engine.executors.ray_tune.nodes import (
    WATCH_SECONDS,
    check_data,
    check_reachable,
    check_socket_folder,
    live_nodes,
    watch_cluster,
)
from nas_attn.engine.executors.ray_tune.searcher import LoopScheduler, LoopSearcher
from nas_attn.engine.executors.ray_tune.trainable import TrainTrial
from nas_attn.engine.executors.transfer import DatasetArchive, FileSync
from nas_attn.engine.loop import SearchLoop
from nas_attn.errors import SearchError
from nas_attn.masking import environment_without_secrets
from nas_attn.trials.job import TrialJob

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 1024 * 1024
MOST_WORKERS = 100_000
"""For Tune, which must have a number; how many trials run at a time is decided elsewhere."""


class RayExecutor:
    """Runs trials under Ray Tune.

    Args:
        config: Number of workers, and how data reach other nodes.
        resources: Resources of one trial.
        address: Address of a running Ray cluster; None starts Ray on this machine.
        data: The data set's folder, sent to other nodes if so configured.
        runs: The run folder, where files come back to.
    """

    # Ray has nothing to ask for by which a trial gets a node for itself.
    frees_machine = False

    def __init__(
        self,
        config: ExecutionConfig,
        resources: ResourcesConfig,
        address: str | None,
        *,
        data: Path,
        runs: Path,
    ) -> None:
        self.config = config
        self.resources = resources
        self.data = data
        self.runs = runs
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            check_socket_folder(os.environ)
            # Named "local" explicitly, else Ray joins whatever an earlier crash left behind.
            options |= {"address": "local", "include_dashboard": False}
            options |= {"object_store_memory": OBJECT_STORE_BYTES}
        else:
            check_reachable(address)
            options["address"] = address
        try:
            with environment_without_secrets():
                ray.init(**options)
        except (OSError, RuntimeError, ValueError) as error:
            raise SearchError(
                f"cannot join Ray at {address or 'this machine'}: {error} (if the cluster asks for "
                "a token, set RAY_AUTH_MODE=token)"
            ) from error
        self._counted_at = time.monotonic()
        self.workers = self._count_places()
        try:
            if self.workers < 1:
                raise SearchError(
                    f"no Ray node has room for a trial of {resources.cpus} CPUs and "
                    f"{resources.gpus} GPUs"
                )
            if address is not None and config.transfer == "shared_folder":
                check_data(data)
        except SearchError:
            ray.shutdown()
            raise

    def run(self, loop: SearchLoop) -> None:
        """Run until the search is over.

        If the cluster goes away for a minute, Ray ends this process; why is logged before.
        """
        gpus = self.resources.gpus
        share = trials_a_gpu(gpus) if gpus > 0 else 1
        searcher = LoopSearcher(loop, self._places, trials_a_gpu=share)
        over = threading.Event()
        cluster = ray.get_runtime_context().gcs_address
        watch = threading.Thread(target=watch_cluster, args=(cluster, over), daemon=True)
        watch.start()
        with tempfile.TemporaryDirectory(prefix="nas-attn-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(self._trainable(), partial(_needs, self.resources)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=LoopScheduler(searcher),
                    num_samples=-1,
                    max_concurrent_trials=MOST_WORKERS,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch,
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            try:
                tuner.fit()
            finally:
                over.set()
                watch.join()
                ray.shutdown()

    def _trainable(self) -> Any:
        if self.config.transfer == "shared_folder":
            return tune.with_parameters(TrainTrial, warm=self.config.fork_server)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(FileSync)
        sync = actor.options(num_cpus=0, scheduling_strategy=here).remote(self.runs)
        archive = DatasetArchive.pack(self.data)
        return tune.with_parameters(
            TrainTrial, warm=self.config.fork_server, archive=archive, sync=sync
        )

    def _places(self) -> int:
        """Trials at a time on the nodes there are now."""
        if time.monotonic() - self._counted_at >= WATCH_SECONDS:
            self._counted_at = time.monotonic()
            places = self._count_places()
            if places != self.workers:
                logger.warning("Ray nodes came or went: %d trials at a time now", places)
                self.workers = places
        return self.workers

    def _count_places(self) -> int:
        """Trials that fit at a time; one trial stays on one node."""
        places = 0
        for node in live_nodes():
            has = node["Resources"]
            fits = int(has.get("CPU", 0) / self.resources.cpus)
            if self.resources.gpus > 0:
                # A fraction is one of one GPU: of two GPUs, 0.6 and 0.6 are not 1.2 of both.
                devices = int(has.get("GPU", 0)) // max(1, int(self.resources.gpus))
                fits = min(fits, devices * trials_a_gpu(self.resources.gpus))
            places += fits
        return min(places, self.config.workers or places)


def _needs(resources: ResourcesConfig, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray gives a trial; one that is to be alone gets whole GPUs."""
    needs: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus > 0:
        alone = TrialJob.from_json(config["job"]).alone
        # Ray counts in ten-thousandths, and would round 0.166666 up, of which five fit and not six.
        least = math.floor(resources.gpus * 1e4 + 1e-6) / 1e4
        needs["GPU"] = math.ceil(resources.gpus) if alone else least
    return tune.PlacementGroupFactory([needs])
