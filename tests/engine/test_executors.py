"""What executors hand out and take back: GPUs of this machine, losses that are no numbers."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas_attn.curves import Curve, Point, write_curves
from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors import gpus, local
from nas_attn.engine.executors.gpus import deal_gpus, visible_gpus
from nas_attn.engine.executors.local import LocalExecutor
from nas_attn.engine.executors.simulated import SimulatedExecutor
from nas_attn.engine.loop import JobBuilder
from nas_attn.errors import UsageError
from nas_attn.plan import AttentionPlan
from nas_attn.simulation.command import replay_command
from nas_attn.simulation.synthetic import ReplayConfig
from nas_attn.trials import runner as worker
from nas_attn.trials.job import SeedRun, TrialJob
from tests.helpers.fakes import make_loop, make_sizer

TELLING = """
import json, os, sys, time
seen, folder = os.environ.get("CUDA_VISIBLE_DEVICES"), sys.argv[2]
line = {"num_updates": 1, "metrics": {"loss": 1.0}, "parameters": {"total": int(sys.argv[1])}}
with open(os.environ["NAS_ATTN_REPORT"], "w") as report:
    report.write(json.dumps(line) + "\\n")
began = time.time()
time.sleep(0.3)
with open(folder, "a") as file:
    file.write(json.dumps([seen, began, time.time()]) + "\\n")
"""
"""Stands in for a training: it writes down which GPUs it sees, and from when to when."""


@pytest.mark.parametrize(
    ("given", "count", "seen"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("", 0, []),
        ("3,1", 2, ["3", "1"]),
        (" 3 , 1 ", 2, ["3", "1"]),
        ("GPU-5c1a, GPU-77ab", 2, ["GPU-5c1a", "GPU-77ab"]),
        ("0,1,9", 2, ["0", "1"]),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        ("MIG-a,MIG-b,MIG-a", 1, ["MIG-a", "MIG-b"]),
        ("MIG-a,MIG-b", 0, []),
    ],
)
def test_what_was_given_is_not_widened(
    given: str | None, count: int, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts what it can see under the variable, of MIG instances the first."""
    monkeypatch.setattr(gpus, "_count", lambda: count)
    assert visible_gpus({} if given is None else {"CUDA_VISIBLE_DEVICES": given}) == seen


FOUR = ["4", "5", "6", "7"]


@pytest.mark.parametrize(
    ("names", "each", "workers", "dealt"),
    [
        (["1"], 1, None, ["1"]),
        (FOUR, 1, None, FOUR),
        (FOUR, 1, 2, ["4", "5"]),
        (FOUR, 2, None, ["4,5", "6,7"]),
        (FOUR, 3, None, ["4,5,6"]),
        (["GPU-a", "GPU-b"], 0.5, None, ["GPU-a", "GPU-b"] * 2),
        (["0", "1"], 0.5, 2, ["0", "1"]),
        (["0", "1"], 0.4, None, ["0", "1"] * 2),
        (["0", "1"], 0.6, None, ["0", "1"]),
        (["0"], 0.1, None, ["0"] * 10),
        (["0"], 0.3, None, ["0"] * 3),
        (["MIG-a", "MIG-b"], 1, None, ["MIG-a", "MIG-b"]),
    ],
)
def test_gpus_are_dealt_out(
    names: list[str], each: float, workers: int | None, dealt: list[str]
) -> None:
    assert deal_gpus(names, each, workers) == dealt
    load = Counter(name for device in dealt for name in device.split(","))
    assert max(load.values()) * min(each, 1) <= 1 + 1e-9, "no more than a whole one"
    assert set(load) <= set(names)


@pytest.mark.parametrize(
    ("names", "each", "workers", "message"),
    [
        ([], 1, None, "a trial wants 1 GPUs, but there are 0; ask for fewer"),
        ([], 0.5, 1, "a trial wants 0.5 GPUs, but there are 0"),
        (["2"], 2, None, r"a trial wants 2 GPUs, but there are 1 \(2\)"),
        (["0", "1"], 1, 3, r"3 trials at a time with 1 GPUs each do not fit, .*; take at most 2"),
        (["0", "1"], 0.6, 3, "take at most 2"),
        (["0"], 0.3, 4, "take at most 3"),
        (FOUR, 3, 2, "take at most 1"),
        (["MIG-a", "MIG-b"], 2, None, "a process can use one MIG instance only"),
    ],
)
def test_more_gpus_than_there_are_is_refused(
    names: list[str], each: float, workers: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        deal_gpus(names, each, workers)


def telling_jobs(folder: Path) -> JobBuilder:
    """Trains nothing; what trainings see goes to the file `told`."""

    def build(number: int, plan: AttentionPlan, _: str | None) -> TrialJob:
        total = make_sizer().size(plan).total
        trial, told = folder / f"{number:05d}", str(folder / "told")
        run = SeedRun(seed=1, folder=str(trial / "seed-1"), command=(str(total), told))
        return TrialJob(
            number=number,
            folder=str(trial),
            metric="loss",
            parameters=total,
            runs=(run,),
            plan=plan.to_json(),
        )

    return build


@pytest.mark.parametrize(
    ("given", "each", "most"), [("GPU-a,GPU-b", 1, 1), ("5", 0.5, 2), ("7,2,5", 2, 1), ("", 0, 2)]
)
def test_trials_see_their_gpus(
    given: str, each: float, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = given.split(",")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(gpus, "_count", lambda: len(names))
    monkeypatch.setattr(worker, "executable_form", lambda c: [sys.executable, "-c", TELLING, *c])
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    loop = make_loop(tmp_path, trials=5)
    loop.build_job = telling_jobs(tmp_path)
    config = ExecutionConfig(fork_server=False, workers=None if each else 2)
    LocalExecutor(config, ResourcesConfig(gpus=each)).run(loop)
    assert [trial.is_trained for trial in loop.store.trials()] == [True] * 5
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert len(told) == 5
    for seen, began, ended in told:
        assert seen == given if not each else set(seen.split(",")) <= set(names)
        for name in seen.split(",") if each else ():
            beside = [s for s, b, e in told if name in s.split(",") and b < ended and e > began]
            assert 1 <= len(beside) <= most


def test_a_search_runs_beside_the_main_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a notebook's thread, where no signal handler could be set."""
    monkeypatch.setattr(worker, "executable_form", lambda c: [sys.executable, "-c", TELLING, *c])
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    loop = make_loop(tmp_path, trials=3)
    loop.build_job = telling_jobs(tmp_path)
    executor = LocalExecutor(ExecutionConfig(fork_server=False, workers=2), ResourcesConfig())
    with ThreadPoolExecutor(1) as threads:
        threads.submit(executor.run, loop).result(timeout=120)
    assert loop.outcome().finished == 3


def test_a_simulated_loss_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=6, give_up_after=6)
    curves: dict[tuple[str, int], Curve] = {}

    def build(number: int, plan: AttentionPlan, _: str | None) -> TrialJob:
        text = plan.dumps()
        losses = {1: [4.0, float("nan")], 2: [float("inf"), 3.0]}.get(number, [4.0, 3.0])
        if number != 3:
            points = (Point(i + 1, loss, i + 1.0) for i, loss in enumerate(losses))
            curves[text, 1] = Curve(tuple(points))
        write_curves(curves, tmp_path / "curves.csv")
        config = ReplayConfig(curves=tmp_path / "curves.csv")
        command = tuple(replay_command(config, text, 9, 1, tmp_path / "save"))
        run = SeedRun(seed=1, folder=str(tmp_path / "run"), command=command)
        return TrialJob(number=number, folder="f", metric="loss", parameters=9, runs=(run,))

    loop.build_job = build
    SimulatedExecutor(1).run(loop)
    trials = loop.store.trials()
    assert [trial.failure for trial in trials] == [
        None,
        "not_finite",
        "not_finite",
        "training_error",
        None,
        None,
    ]
    assert trials[1].reason == "the validation loss of seed 1 is nan"
    assert "holds no curve of seed 1" in (trials[3].reason or "")
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert [trial.loss for trial in done] == [3.0] * 3


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_refused_before_ray_starts(variable: str) -> None:
    from nas_attn.engine.executors.ray_tune.nodes import check_socket_folder

    check_socket_folder({})
    check_socket_folder({"TMPDIR": "/long" * 20, "RAY_TMPDIR": "/tmp"})
    socket = f"/ray/session_2026-11-26_11-30-51_123456_{os.getpid()}/sockets/plasma_store"
    most = 107 - len(socket)
    check_socket_folder({variable: "/" + "x" * (most - 1)})
    message = rf"sockets under {variable}, .* at most {most} bytes .*set RAY_TMPDIR to a short"
    with pytest.raises(UsageError, match=message):
        check_socket_folder({variable: "/" + "x" * most})
