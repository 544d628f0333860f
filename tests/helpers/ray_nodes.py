"""A Ray cluster for tests: several nodes on this machine, each with a temporary folder of its own.

What a node makes lies in its folder, so that files on another one must have travelled.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.study.loading import load_study

COMMAND = [sys.executable, "-W", "ignore", "-m", "nas_attn.cli.main", "search"]
RECONNECT_SECONDS = 5
"""How long Ray waits for its head before a driver ends; a minute by default."""
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""By which the head notices within seconds that a node has died."""

_drivers: list[subprocess.Popen[bytes]] = []
"""What `start_driver` started; ended with the cluster if a test has failed before."""


class RayNodes:
    """A cluster that can lose nodes; one at a time on this machine, whichever tests run beside.

    Args:
        folder: for the nodes' temporary folders.
        head_cpus: of the head's node, which drivers are on.
        head_gpus: made-up ones of the head's node.
    """

    def __init__(self, folder: Path, head_cpus: int, head_gpus: int = 0) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self._lock = (Path(tempfile.gettempdir()) / "nas-attn-ray-nodes.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._cluster = Cluster()
            self.head = self._add(
                "head",
                num_cpus=head_cpus,
                num_gpus=head_gpus,
                include_dashboard=False,
                _system_config=HEALTH,
            )
        except BaseException:
            self._lock.close()
            raise

    @property
    def address(self) -> str:
        address: str = self._cluster.address
        return address

    def add(self, name: str) -> Any:
        """A node with room for one trial."""
        return self._add(name, num_cpus=1)

    def kill(self, node: Any) -> None:
        """kill -9 of a node's raylet; its workers end with it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        """kill -9 of the head's GCS, without which no node goes on for long."""
        for info in self.head.all_processes["gcs_server"]:
            info.process.kill()

    def close(self) -> None:
        try:
            for driver in _drivers:
                driver.kill()
                driver.wait()
            _drivers.clear()
            self._cluster.shutdown()
        finally:
            self._lock.close()

    def _add(self, name: str, **arguments: Any) -> Any:
        temporary = self._folder / name
        temporary.mkdir(parents=True)
        return self._cluster.add_node(env_vars={"TMPDIR": str(temporary)}, **arguments)


def trains_on(node: Any, trial: Path) -> bool:
    """Whether a node has a process whose command line names a trial's folder."""
    (raylet,) = node.all_processes["raylet"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if str(trial) in words and _descends(int(entry.name), raylet.process.pid):
                return True
    return False


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return False
        pid = int(status.rpartition(")")[2].split()[1])  # the name before may hold anything
    return pid == ancestor


def start_driver(study: Path, runs: Path, *options: str) -> subprocess.Popen[bytes]:
    """`nas-attn search` as a process; what it prints goes to the study's log."""
    reconnect = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS)}
    with log_of(study).open("ab") as log:
        driver = subprocess.Popen(
            [*COMMAND, str(study), "--runs", str(runs), *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **reconnect},
        )
    _drivers.append(driver)
    return driver


def trials_of(study: Path, runs: Path) -> list[TrialRecord]:
    """What a study has on record."""
    loaded = load_study(str(study), runs=runs)
    return TrialStore(
        loaded.config.name, open_storage(None, loaded.folder), loaded.objectives
    ).trials()


def log_of(study: Path) -> Path:
    return study.with_suffix(".log")


def wait_for(happened: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path) -> None:
    """Wait while a driver works."""
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline, log.read_text()
        assert driver.poll() is None, log.read_text()
        time.sleep(0.1)
