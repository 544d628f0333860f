"""Run trials under Ray Tune, on this machine or on a cluster.

Tune only executes. Proposals come from the conductor through a searcher of our own, the conductor
says through a scheduler of our own which trial stops, and a search that was interrupted goes on
from the Optuna record, not from Tune's files.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas_attn.errors import RefusedError, SearchError
from nas_attn.masking import environment_without_secrets
from nas_attn.search.config import ExecutionConfig, ResourcesConfig
from nas_attn.search.executors.transfer import Courier, DataParcel, NodeFiles
from nas_attn.search.loop import Conductor
from nas_attn.trials.failures import FailureKind, kind_of_error
from nas_attn.trials.job import Progress, TrialJob, TrialResult
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.runner import TrialRun

# Ray reads these as it is imported: send nothing home, print no tables of its own, let Ctrl-C
# through, accept a last report that is a result and no validation, and write no logs of its own.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
OBJECT_STORE_BYTES = 100 * 1024 * 1024
CONNECT_SECONDS = 10.0
MOST_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
WATCH_SECONDS = 2.0
"""How often nodes are counted and the cluster is looked at."""
LOOK_SECONDS = 60.0
"""How long nodes have to say whether they have the data."""
MOST_WORKERS = 100_000
"""For Tune, which must have a number; how many trials run at a time is decided elsewhere."""


class TrainTrial(tune.Trainable):
    """Runs jobs, one after the other; this is what a Ray worker executes.

    A step is a validation or the end, told as JSON since Tune flattens what is nested. The process
    is used again for the next trial, so fairseq is imported once in it; trainings themselves are
    processes of their own.
    """

    def setup(
        self,
        config: dict[str, Any],
        warm: bool = True,
        parcel: DataParcel | None = None,
        courier: Any = None,
    ) -> None:
        self._launcher: Launcher = ForkServer() if warm else ColdLauncher()
        self._files = NodeFiles(parcel, courier)
        self._begin(config)

    def step(self) -> dict[str, Any]:
        try:
            return self._advance()
        except Exception as error:  # of this node; Tune would pass on that there was one, not which
            logger.exception("trial %d", self._job.number)
            message = f"trial {self._job.number} on {socket.gethostname()}: {error!r}"
            failure = kind_of_error(error) or FailureKind.WORKER_LOST
            return _ended(TrialResult(error=message, failure=failure))

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
        self._news: list[Progress] = []

    def _advance(self) -> dict[str, Any]:
        """Go on to the next validation or the end."""
        if self._trial is None:
            self._trial = TrialRun(self._files.localise(self._job), launcher=self._launcher)
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


class ConductorSearcher(Searcher):
    """Lets Tune ask the conductor for jobs and tell it what became of them.

    Args:
        conductor: of the search.
        places: says how many trials fit now. A trial begins when there is room for it, since its
            proposal had better know what came before, and Ray would let it wait for a lost node.
    """

    def __init__(self, conductor: Conductor, places: Callable[[], int]) -> None:
        super().__init__(metric="loss", mode="min")
        self.conductor = conductor
        self.places = places
        self.numbers: dict[str, int] = {}
        self._began: dict[str, float] = {}

    def suggest(self, trial_id: str) -> Any:
        has_room = len(self.numbers) < self.places()
        job = self.conductor.next_job() if has_room else None
        if job is None:
            # None means: ask again later.
            return Searcher.FINISHED if self.conductor.is_over() else None
        self.numbers[trial_id] = job.number
        self._began[trial_id] = time.monotonic()
        return {"job": job.to_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return  # Tune tells twice where a worker dies as its trial ends
        seconds = time.monotonic() - self._began.pop(trial_id)
        if result is not None and "ended" in result:
            ended = TrialResult.from_json(json.loads(result["ended"]))
        elif error or result is None:
            ended = TrialResult(
                seconds=seconds,
                error="the Ray worker of the trial died, or its node did",
                failure=FailureKind.WORKER_LOST,
            )
        else:
            ended = TrialResult(seconds=seconds)
        self.conductor.finish(number, ended)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; nothing of this is ever restored."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the record is the Optuna study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the record is the Optuna study."""


class ConductorScheduler(FIFOScheduler):
    """Asks the conductor at every validation whether a trial goes on."""

    def __init__(self, searcher: ConductorSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; nothing of this is ever restored."""
        return {}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "progress" not in result:
            return TrialScheduler.CONTINUE
        number = self.searcher.numbers[trial.trial_id]
        news = Progress(**json.loads(result["progress"]))
        goes_on = self.searcher.conductor.progress(number, news)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class RayExecutor:
    """Runs trials under Ray Tune.

    Args:
        config: how many, and how data reach other nodes.
        resources: of one trial.
        address: of a running Ray cluster; None starts Ray on this machine.
        data: the data set's folder, sent to other nodes if so configured.
        runs: the run folder, where files come back to.
    """

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
            _check_reachable(address)
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
                _check_data(data)
        except SearchError:
            ray.shutdown()
            raise

    def run(self, conductor: Conductor) -> None:
        """Run until the search is over.

        If the cluster goes away for a minute, Ray ends this process; why is logged before.
        """
        searcher = ConductorSearcher(conductor, self._places)
        over = threading.Event()
        cluster = ray.get_runtime_context().gcs_address
        watch = threading.Thread(target=_watch, args=(cluster, over), daemon=True)
        watch.start()
        needs = {"cpu": self.resources.cpus, "gpu": self.resources.gpus}
        with tempfile.TemporaryDirectory(prefix="nas-attn-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(self._trainable(), needs),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=ConductorScheduler(searcher),
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
            return tune.with_parameters(TrainTrial, warm=self.config.warm)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Courier)
        courier = actor.options(num_cpus=0, scheduling_strategy=here).remote(self.runs)
        parcel = DataParcel.pack(self.data)
        return tune.with_parameters(
            TrainTrial, warm=self.config.warm, parcel=parcel, courier=courier
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
        for node in _nodes():
            has = node["Resources"]
            fits = int(has.get("CPU", 0) / self.resources.cpus)
            if self.resources.gpus > 0:
                fits = min(fits, int(has.get("GPU", 0) / self.resources.gpus + 1e-9))
            places += fits
        return min(places, self.config.workers or places)


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _check_data(folder: Path) -> None:
    """A node without the data would draw trial after trial, and fail them all at once.

    Raises:
        SearchError: there is such a node.
    """
    look: Any = ray.remote(num_cpus=0)(Path.is_dir)
    asked = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[look.options(scheduling_strategy=there).remote(folder)] = node["NodeManagerHostname"]
    lacking = set()
    for answer in ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)[0]:
        try:
            if not ray.get(answer):
                lacking.add(asked[answer])
        except ray.exceptions.RayError:
            continue  # the node has died meanwhile
    if lacking:
        raise SearchError(
            f"no data folder {folder} on the Ray node(s) {', '.join(sorted(lacking))}: share the "
            "folder with every node, or set execution.transfer to object_store"
        )


def check_socket_folder(environment: Mapping[str, str]) -> None:
    """See that Ray can keep its sockets under the temporary folder.

    Raises:
        RefusedError: the path of a socket would be longer than the system allows.
    """
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in environment else "TMPDIR"
    folder = environment.get(variable, "/tmp")  # as Ray has it
    session = f"session_YYYY-MM-DD_HH-MM-SS_micros_{os.getpid()}"
    length = len(os.fsencode(f"{folder}/ray/{session}/sockets/plasma_store"))
    if length > MOST_SOCKET_BYTES:
        most = len(os.fsencode(folder)) - (length - MOST_SOCKET_BYTES)
        raise RefusedError(
            f"Ray keeps sockets under {variable}, whose path may have at most {most} bytes for "
            f"that, but is {folder}: set RAY_TMPDIR to a short folder, such as /tmp"
        )


def _watch(address: str, over: threading.Event) -> None:
    """Say so when the cluster goes away, as Ray ends this process in words of its own."""
    answers = True
    while not over.wait(WATCH_SECONDS):
        try:
            _connect(address)
        except OSError as error:
            if answers:
                logger.error(
                    "the Ray cluster at %s does not answer: %s; if it stays away, this driver "
                    "ends, and the same command goes on where it stopped once there is a cluster",
                    address,
                    error,
                )
            answers = False
        else:
            answers = True


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes on an address where nothing listens.

    Raises:
        SearchError: nothing does, or it is one of Ray's client.
    """
    if address.startswith("ray://"):
        # There Tune would run in another process than the conductor.
        raise SearchError(
            f"{address} is an address of Ray's client, from which no search can run: start it on a "
            "machine of the cluster, with --address auto or HOST:6379"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # such as "auto"
    try:
        _connect(f"{host}:{port}")
    except OSError as error:
        raise SearchError(f"nothing answers at the Ray address {address}: {error}") from None


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
