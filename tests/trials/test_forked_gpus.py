"""Forked trainings on machines with GPUs: the server sees none, its children see what is there."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nas_attn.trials.processes.fork_server import ForkServer, _server_environment
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from tests.helpers.devices import needs_cuda
from tests.helpers.forked import run_module
from tests.helpers.paths import ROOT
from tests.helpers.telling_gpus import FAKE_DRIVER

TELLING = "tests.helpers.telling_gpus"


def told_by(launcher: Launcher, folder: Path, **variables: str) -> dict[str, Any]:
    """What a process says that a launcher starts."""
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        running = launcher.start(
            [sys.executable, "-m", TELLING, str(folder / "told")],
            environment={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            log=folder / "log",
            keep_open=lock.fileno(),
            with_fairseq=True,
        )
    assert running.wait(120) == 0, (folder / "log").read_text()
    told: dict[str, Any] = json.loads((folder / "told").read_text())
    return told


def test_the_server_sees_no_gpu() -> None:
    for given in ({}, {"CUDA_VISIBLE_DEVICES": "3"}):
        assert _server_environment(given)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("count", [0, 1, 4])
def test_what_a_child_takes_from_the_number_of_gpus(count: int, tmp_path: Path) -> None:
    """In a process that was forked off one with fairseq, which had counted none."""
    done = run_module(TELLING, [str(tmp_path / "told"), str(count)], cwd=ROOT)
    assert done.status == 0, done.stderr
    told = json.loads((tmp_path / "told").read_text())
    assert told["count"] == count
    for place in ("made", "training", "kept", "kept alone"):
        for name in ("distributed_world_size", "distributed_num_procs", "nprocs_per_node"):
            assert told[place][name] == max(1, count), (place, name)
    assert told["generation"]["distributed_world_size"] == 1


@pytest.mark.slow
def test_a_driver_with_threads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To count GPUs starts a thread, and yet the server forks; commands see what cold ones see."""
    (tmp_path / "sitecustomize.py").write_text(FAKE_DRIVER)
    fake = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    launcher = ForkServer()
    try:
        for devices, count in (("GPU-a,GPU-b", 2), ("7", 1), ("", 0)):
            given = {**fake, "CUDA_VISIBLE_DEVICES": devices}
            forked = told_by(launcher, tmp_path / f"forked {count}", **given)
            assert launcher._servers, caplog.text
            assert forked == told_by(ColdLauncher(), tmp_path / f"cold {count}", **given)
            assert forked["count"] == count
            assert forked["training"]["distributed_world_size"] == max(1, count)
    finally:
        launcher.close()
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["broken", pytest.param("hidden", marks=pytest.mark.long)])
def test_cuda_that_does_not_survive_a_fork(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A child tries it, with the GPUs that trainings will have; it fails there, or shows none."""
    (tmp_path / "sitecustomize.py").write_text(FAKE_DRIVER)
    fake = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "FAKE_CUDA": fault}
    launcher = ForkServer()
    try:
        with caplog.at_level(logging.WARNING):
            told = told_by(launcher, tmp_path / "cold", CUDA_VISIBLE_DEVICES="0,1", **fake)
    finally:
        launcher.close()
    assert told["count"] == 2
    assert [record.getMessage() for record in caplog.records] == [
        "trainings start cold: the server of warm starts refused: CUDA does not work in a forked "
        "process"
    ]


@needs_cuda
def test_a_forked_process_computes_on_its_gpu(tmp_path: Path) -> None:
    """With the real driver: what a cold process sees, a forked one sees."""
    launcher = ForkServer()
    try:
        forked = told_by(launcher, tmp_path / "forked")
        assert launcher._servers, "it was forked"
        assert forked == told_by(ColdLauncher(), tmp_path / "cold")
        hidden = told_by(launcher, tmp_path / "hidden", CUDA_VISIBLE_DEVICES="")
    finally:
        launcher.close()
    assert forked["count"] > 0 == hidden["count"]
