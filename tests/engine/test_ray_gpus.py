"""What a trial on Ray sees of the GPUs: those that Ray gave it, whole or in part."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.ray_nodes import RayNodes, log_of, start_driver, trials_of
from tests.helpers.studies import write

pytest.importorskip("ray")
filter_warnings = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files open


def environments(folder: Path) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of the processes that train into a folder, by the trial's."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text("utf-8", errors="replace")
            variables = (process / "environ").read_text("utf-8", errors="replace").split("\0")
        except OSError:
            continue
        if f"{folder}/" in words and "simulation" in words:
            trial = words.partition(f"{folder}/")[2].partition("/")[0]
            seen = [v for v in variables if v.startswith("CUDA_VISIBLE_DEVICES=")]
            found[trial] = seen[0].partition("=")[2] if seen else "not set"
    return found


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "places"),
    [
        ([(8, 2)], 1, 0.6, 2),  # of two GPUs, and not three of 1.2 each
        ([(8, 2)], 1, 0.3, 6),
        ([(4, 2)], 1, 0.3, 4),
        ([(8, 3)], 1, 2.0, 1),
        ([(8, 4), (8, 1)], 2, 1.0, 5),
        ([(8, 4), (2, 1)], 1, 0.1, 10),
        ([(8, 0)], 2, 0.0, 4),
        ([(8, 0)], 2, 0.5, 0),
    ],
)
def test_places_on_the_nodes(
    nodes: list[tuple[int, int]],
    cpus: int,
    gpus: float,
    places: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nas_attn.engine.executors.ray_tune import executor

    there = [{"Resources": {"CPU": cpu, **({"GPU": gpu} if gpu else {})}} for cpu, gpu in nodes]
    monkeypatch.setattr(executor, "live_nodes", lambda: there)
    made = object.__new__(executor.RayExecutor)
    made.config = ExecutionConfig(executor="ray")
    made.resources = ResourcesConfig(cpus=cpus, gpus=gpus)
    assert made._count_places() == places


def test_what_a_trial_asks_ray_for() -> None:
    from nas_attn.engine.executors.ray_tune.executor import _needs

    def asked(gpus: float, *, alone: bool = False) -> dict[str, float]:
        job = {"number": 1, "folder": "f", "metric": "loss", "parameters": 1, "runs": []}
        config: dict[str, Any] = {"job": {**job, "alone": alone}}
        (bundle,) = _needs(ResourcesConfig(cpus=2, gpus=gpus), config).bundles
        return {name: float(value) for name, value in bundle.items()}

    assert asked(0) == asked(0, alone=True) == {"CPU": 2}
    assert asked(0.3) == {"CPU": 2, "GPU": 0.3}
    assert asked(0.3, alone=True) == {"CPU": 2, "GPU": 1}
    assert asked(3, alone=True) == asked(3) == {"CPU": 2, "GPU": 3}
    assert asked(0.166666)["GPU"] == 0.1666, "rounded up, six of them would not fit"


@pytest.mark.slow
@filter_warnings
@pytest.mark.parametrize(
    ("gpus", "most", "names"),
    [(0.5, 2, {"0", "1"}), pytest.param(2, 1, {"0,1"}, marks=pytest.mark.long)],
)
def test_trainings_see_the_gpus_of_their_trial(
    gpus: float, most: int, names: set[str], tiny_translation: PreparedData, tmp_path: Path
) -> None:
    changes = {
        "space/decide": "site",
        "search/trials": 5,
        "search/sampler": "stratified_random",
        "execution": {"executor": "ray"},
        "resources": {"gpus": gpus},
        "replay": {"seconds": 3.0},
    }
    study, runs = write(tmp_path, tiny_translation.folder, changes), tmp_path / "runs"
    nodes = RayNodes(tmp_path / "nodes", head_cpus=6, head_gpus=2)
    seen: dict[str, str] = {}
    try:
        driver = start_driver(study, runs, "--address", nodes.address)
        while driver.poll() is None:
            now = environments(runs / "small" / "trials")
            for device, count in Counter(now.values()).items():
                assert device in names and count <= most
            seen |= now
            time.sleep(0.1)
        assert driver.returncode == 0, log_of(study).read_text()
    finally:
        nodes.close()
    trials = trials_of(study, runs)
    assert len(seen) == 5
    for trial in trials:
        assert trial.is_trained
        assert trial.gpus is not None
        assert trial.gpus.partition(" of ")[0] == seen[f"{trial.number:05d}"]
    assert {*seen.values()} == names, json.dumps(seen)


@pytest.mark.slow
@pytest.mark.long
@filter_warnings
def test_what_ran_out_of_memory_gets_a_whole_gpu(
    tiny_translation: PreparedData, tmp_path: Path
) -> None:
    changes = {
        "space/decide": "site",
        "search/trials": 5,
        "search/sampler": "stratified_random",
        "search/give_up_after": 9,
        "execution": {"executor": "ray"},
        "resources": {"gpus": 0.5},
        "replay": {"seconds": 3.0, "faults": {"out_of_memory": 0.5}},
    }
    study, runs = write(tmp_path, tiny_translation.folder, changes), tmp_path / "runs"
    folder = runs / "small" / "trials"
    nodes = RayNodes(tmp_path / "nodes", head_cpus=6, head_gpus=2)
    again: set[str] = set()
    try:
        driver = start_driver(study, runs, "--address", nodes.address)
        while driver.poll() is None:
            now = environments(folder)
            loads = Counter(now.values())
            for trial, device in now.items():
                attempts = folder / trial / "seed-1" / "checkpoints" / "attempts"
                if attempts.is_file() and attempts.read_text().strip() == "2":
                    again.add(trial)
                    assert loads[device] == 1, now
            time.sleep(0.1)
    finally:
        nodes.close()
    trials = trials_of(study, runs)
    continued = {f"{trial.number:05d}" for trial in trials if trial.attempts}
    assert continued and continued == again, log_of(study).read_text()
    for trial in trials:
        assert len(trial.attempts) <= 1
        if trial.failure is not None:
            assert trial.failure == "out_of_memory"
            assert "with no other trial on the GPU, too" in (trial.reason or "")
