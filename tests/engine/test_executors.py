"""What executors take back: losses that are no numbers, and searches beside the main thread."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas_attn.curves import Curve, Point, write_curves
from nas_attn.engine.config import ExecutionConfig, ResourcesConfig
from nas_attn.engine.executors import local
from nas_attn.engine.executors.local import LocalExecutor
from nas_attn.engine.executors.simulated import SimulatedExecutor
from nas_attn.errors import UsageError
from nas_attn.plan import AttentionPlan
from nas_attn.simulation.command import replay_command
from nas_attn.simulation.synthetic import ReplayConfig
from nas_attn.trials import runner as worker
from nas_attn.trials.job import SeedRun, StartFolders, TrialJob
from tests.helpers.fakes import make_loop, telling_jobs
from tests.helpers.telling import as_telling


def test_a_search_runs_beside_the_main_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a notebook's thread, where no signal handler could be set."""
    monkeypatch.setattr(worker, "executable_form", as_telling)
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

    def build(number: int, plan: AttentionPlan, _: StartFolders) -> TrialJob:
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
