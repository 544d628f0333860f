"""Kill what a search consists of, at random times, and see whether any work is lost.

    python stress/faults.py        # 30 replayed trials, killing the driver and trainings
    python stress/faults.py --storage postgres --kill driver worker postgres
    python stress/faults.py --executor ray --kill driver worker node head
    python stress/faults.py --backend fairseq --trials 8 --every 12

A search runs once undisturbed and once under kill -9; the broken one is started again with the same
command whenever its driver is gone. At the end every trial must be complete exactly once, no
validation may have been done twice (but for one that a kill fell into), and plans, losses and front
must be those of the undisturbed search. The exit status is 0 if all of that holds.

One worker (--workers 1) proposes with TPE and stops trials early, so that proposals and decisions
are compared as well; several propose spread over the axis, which does not hang on who is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml

from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.study.loading import load_study
from nas_attn.study.study import Study
from tests.helpers.servers import Postgres, find_postgres

VICTIMS = ("driver", "worker", "node", "head", "postgres")
RECONNECT_SECONDS = 10
"""How long Ray waits for its head before a driver ends; a minute by default."""
END_SECONDS = 60.0
"""By when a driver without its cluster must have ended."""


def study_of(
    options: argparse.Namespace, name: str, data: Path, storage: str | None
) -> dict[str, Any]:
    """The study file of the stress test, on the demo's corpus."""
    alone = options.workers == 1
    arguments: dict[str, Any] = {
        "criterion": "label_smoothed_cross_entropy",
        "share-all-embeddings": True,
        "encoder-layers": 2,
        "decoder-layers": 2,
        "encoder-embed-dim": 32,
        "decoder-embed-dim": 32,
        "encoder-ffn-embed-dim": 64,
        "decoder-ffn-embed-dim": 64,
        "encoder-attention-heads": 4,
        "decoder-attention-heads": 4,
        "optimizer": "adam",
        "lr": 0.005,
        "max-tokens": 2000,
        "max-epoch": 6,
        "num-workers": 0,
    }
    study: dict[str, Any] = {
        "name": name,
        "data": {"folder": str(data), "demo": {"seed": 1, "train_sentences": options.sentences}},
        "training": {"task": "translation", "seeds": [1], "arguments": arguments},
        "space": "collaborative_per_site",
        "search": {
            "trials": options.trials,
            "startup_trials": 5,
            "sampler": "tpe" if alone else "stratified_random",
            "stopping": {"rule": "halving" if alone else "none"},
        },
        "execution": {"retries": 1000, "workers": options.workers, "executor": options.executor},
    }
    if storage is not None:
        study["execution"]["storage"] = storage
    if options.backend == "replay":
        study["replay"] = {"seconds": options.seconds}
    return study


class Driver:
    """`nas-attn search` as a process, started again whenever it is gone."""

    def __init__(self, study: Path, runs: Path, log: Path) -> None:
        self.study, self.runs, self.log = study, runs, log
        self.address: str | None = None
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "nas_attn.cli.main", "search", str(self.study)]
        command += ["--runs", str(self.runs)]
        command += [] if self.address is None else ["--address", self.address]
        self.starts += 1
        reconnect = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS)}
        environment = {**os.environ, **reconnect}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
            )

    def is_done(self) -> bool:
        """Whether the search has ended by itself; a driver that died is started again."""
        if self.process is None:
            self.start()
            return False
        code = self.process.poll()
        if code is None:
            return False
        if code != 0:
            self.process = None
        return code == 0

    def kill(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait()
        self.process = None
        return True


class RayNodes:
    """Two Ray nodes on this machine; the head's end is the cluster's."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.faults: list[str] = []
        self.start()

    def start(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.other = self.cluster.add_node(num_cpus=1)
        self.driver.address = self.cluster.address

    def kill_node(self, generator: random.Random) -> bool:
        """kill -9 of the node that the driver is not on; another one comes after a while."""
        self.cluster.remove_node(self.other, allow_graceful=False)
        time.sleep(generator.uniform(0.0, 5.0))
        self.other = self.cluster.add_node(num_cpus=1)
        return True

    def kill_head(self) -> bool:
        """kill -9 of the head's GCS, then of all that is left, and a new cluster."""
        for info in self.cluster.head_node.all_processes.get("gcs_server", []):
            info.process.kill()
        process = self.driver.process
        try:
            if process is not None:
                process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.faults.append(f"the driver had not ended {END_SECONDS:.0f} s after the head")
            self.driver.kill()
        self.stop()
        self.start()
        return True

    def stop(self) -> None:
        self.cluster.shutdown()


def kill_worker(runs: Path, generator: random.Random) -> bool:
    """kill -9 of a training, or of the Ray worker that watches over one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        is_driver = "nas_attn.cli.main" in words
        is_watcher = words.startswith("ray::TrainTrial") and is_ours(int(entry.name))
        if is_watcher or (not is_driver and is_training(entry, runs)):
            found.append(int(entry.name))
    if not found:
        return False
    try:
        os.kill(generator.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_training(process: Path, runs: Path) -> bool:
    """Whether a process holds the lock of a training; one forked warm has its server's command."""
    try:
        held = [str(link.readlink()) for link in (process / "fd").iterdir()]
    except OSError:
        return False
    return any(name.startswith(f"{runs}/") and name.endswith("/training.lock") for name in held)


def is_ours(pid: int) -> bool:
    """Whether this process, or one that it has started, started another one."""
    while pid > 1 and pid != os.getpid():
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return False
        pid = int(status.rpartition(")")[2].split()[1])  # the name before may hold anything
    return pid == os.getpid()


def read_back(study: Path, runs: Path) -> tuple[Study, list[TrialRecord]]:
    loaded = load_study(str(study), runs=runs)
    storage = open_storage(loaded.config.execution.storage, loaded.folder)
    return loaded, TrialStore(loaded.config.name, storage, loaded.objectives).trials()


def faults_of(whole: list[TrialRecord], broken: list[TrialRecord], replayed: bool) -> list[str]:
    """What was lost, done twice, or came out otherwise."""
    faults = []
    left = [t for t in whole if t.uses_budget]
    right = [t for t in broken if t.uses_budget]
    if len(left) != len(right):
        faults.append(f"{len(left)} trials undisturbed, but {len(right)} under kills")
    for trial in broken:
        if not trial.state.is_finished():
            faults.append(f"trial {trial.number} is not over")
        if trial.uses_budget and trial.state.name == "FAIL":
            faults.append(f"trial {trial.number} failed: {trial.reason}")
    for one, other in zip(left, right, strict=False):
        if (one.plan, one.losses, one.state) != (other.plan, other.losses, other.state):
            faults.append(
                f"trial {one.number}: {one.state.name} {one.losses} {one.plan}, "
                f"but under kills {other.state.name} {other.losses} {other.plan}"
            )
        if one.rungs != other.rungs:
            faults.append(f"trial {one.number}: other decisions of the stopping rule")
    for trial in right:
        if replayed and trial.folder is not None and trial.is_trained:
            report = Path(trial.folder) / "seed-1" / "report.jsonl"
            updates = [json.loads(line)["num_updates"] for line in report.read_text().splitlines()]
            twice = sum(count - 1 for count in Counter(updates).values())
            if twice > 1 + len(trial.attempts):
                faults.append(f"trial {trial.number} did {twice} validations twice")
    if [(t.cost, t.loss) for t in front(left)] != [(t.cost, t.loss) for t in front(right)]:
        faults.append("the fronts differ")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["replay", "fairseq"], default="replay")
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--storage", choices=["journal", "postgres"], default="journal")
    parser.add_argument("--kill", nargs="+", choices=VICTIMS, default=["driver", "worker"])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=12.0, help="seconds between kills, about")
    parser.add_argument(
        "--seconds", type=float, help="of a replayed training; 2, under Ray 6 if left out"
    )
    parser.add_argument("--sentences", type=int, default=1500, help="of the training corpus")
    parser.add_argument("--most", type=int, default=30, help="kills, then the search is left alone")
    parser.add_argument("--limit", type=float, default=1500.0, help="seconds for the broken search")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    if "postgres" in options.kill and options.storage != "postgres":
        parser.error("--kill postgres needs --storage postgres")
    if {"node", "head"} & set(options.kill) and options.executor != "ray":
        parser.error("--kill node or head needs --executor ray")
    if options.storage == "postgres" and find_postgres() is None:
        parser.error("there is no PostgreSQL server on this machine (Debian: postgresql)")
    if options.seconds is None:
        # Tune does not use a second node for trials that are over before its worker has started.
        options.seconds = 6.0 if options.executor == "ray" else 2.0
    generator = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="nas-attn-stress-"))
    server = Postgres(folder / "postgres") if options.storage == "postgres" else None
    storage = None if server is None else server.url
    data, runs = folder / "data", folder / "runs"
    files = {}
    for name in ("whole", "broken"):
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(study_of(options, name, data, storage)))

    began = time.monotonic()
    whole = Driver(files["whole"], runs, folder / "whole.log")
    whole.start()
    assert whole.process is not None
    if whole.process.wait(options.limit) != 0:
        print((folder / "whole.log").read_text()[-3000:])
        return 1
    undisturbed = time.monotonic() - began

    driver = Driver(files["broken"], runs, folder / "broken.log")
    nodes = RayNodes(driver) if options.executor == "ray" else None
    kills: Counter[str] = Counter()
    began = time.monotonic()
    next_kill = began + 6.0
    driver.start()
    while not driver.is_done():
        if time.monotonic() - began > options.limit:
            print(f"not over after {options.limit:.0f} s")
            print((folder / "broken.log").read_text()[-3000:])
            driver.kill()
            return 1
        time.sleep(0.1)
        if time.monotonic() < next_kill or kills.total() >= options.most:
            continue
        victim = generator.choice(options.kill)
        done = False
        if victim == "driver":
            done = driver.kill()
        elif victim == "worker":
            done = kill_worker(runs / "broken", generator)
        elif victim == "postgres" and server is not None:
            server.kill()
            time.sleep(generator.uniform(0.0, 3.0))
            server.start()
            done = True
        elif victim == "node" and nodes is not None:
            done = nodes.kill_node(generator)
        elif victim == "head" and nodes is not None:
            done = nodes.kill_head()
        if done:
            kills[victim] += 1
            pause = 8.0 if victim == "head" else 0.0
            next_kill = time.monotonic() + pause + options.every * generator.uniform(0.4, 1.6)
    seconds = time.monotonic() - began

    _, before = read_back(files["whole"], runs)
    _, after = read_back(files["broken"], runs)
    faults = faults_of(before, after, options.backend == "replay")
    if nodes is not None:
        faults += nodes.faults
        nodes.stop()
    if server is not None:
        server.stop()
    attempts = sum(len(trial.attempts) for trial in after)
    counted = [trial for trial in after if trial.uses_budget]
    states = Counter(trial.state.name.lower() for trial in counted)
    print(
        f"seed {options.seed}: {options.backend}, {options.executor}, {options.storage}, "
        f"{options.workers} worker(s), {len(counted)} trials: "
        + ", ".join(f"{count} {state}" for state, count in states.items())
    )
    print(
        f"killed: {', '.join(f'{name} {count}' for name, count in kills.items()) or 'nothing'}; "
        f"driver started {driver.starts} times, {attempts} trials continued after a fault; "
        f"{seconds:.0f} s, undisturbed {undisturbed:.0f} s"
    )
    points = front(before)
    print(f"front: {len(points)} points, " + ("identical" if not faults else "see below"))
    for fault in faults:
        print(f"FAULT {fault}")
    if options.keep or faults:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
