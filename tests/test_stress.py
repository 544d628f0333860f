"""The stress test, in short: what is killed comes back, and nothing is lost or done twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from stress.faults import faults_of
from tests.helpers.fakes import FakeExecutor, make_loop
from tests.helpers.servers import find_postgres

FAULTS = Path(__file__).resolve().parent.parent / "stress" / "faults.py"
KILLS = 2


def stress(*arguments: str) -> str:
    """Run it; returns what it prints."""
    command = [sys.executable, "-W", "ignore", str(FAULTS), "--trials", "6", "--most", str(KILLS)]
    command += ["--every", "4", "--seed", "5", "--limit", "240", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, printed
    return printed


def kills(printed: str) -> dict[str, int]:
    """How often what was killed."""
    found = re.search(r"^killed: (.*?);", printed, re.MULTILINE)
    assert found is not None, printed
    return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", found[1])}


@pytest.mark.slow
@pytest.mark.long
def test_drivers_and_workers_are_killed() -> None:
    printed = stress()
    assert "6 trials: 6 complete" in printed
    assert sum(kills(printed).values()) >= 1, printed


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(find_postgres() is None, reason="no PostgreSQL server (Debian: postgresql)")
def test_the_database_is_killed() -> None:
    printed = stress("--storage", "postgres", "--kill", "postgres", "driver")
    assert "6 trials: 6 complete" in printed
    assert kills(printed).get("postgres", 0) >= 1, printed


def test_the_stress_test_sees_what_is_lost_or_comes_out_otherwise(tmp_path: Path) -> None:
    trials = []
    for name in ("whole", "broken"):
        loop = make_loop(tmp_path / name, sampler="stratified_random", trials=6)
        FakeExecutor().run(loop)
        trials.append(loop.store.trials())
    whole, broken = trials
    assert faults_of(whole, broken, replayed=False) == []
    lost = faults_of(whole, broken[:-1], replayed=False)
    assert lost[0] == "6 trials undisturbed, but 5 under kills"
    left = [*broken[:-1], replace(broken[-1], state=TrialState.RUNNING, losses=(), loss=None)]
    assert faults_of(whole, left, replayed=False)[0] == "trial 5 is not over"
    other = [*broken[:-1], replace(broken[-1], losses=(9.0,))]
    assert faults_of(whole, other, replayed=False)[0].startswith("trial 5: COMPLETE")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--no-disk",)], ids=["disk", "limit"])
def test_a_record_that_cannot_be_destroyed(arguments: tuple[str, ...]) -> None:
    """Shows that after kills, torn writes, other writers and a full disk all is as undisturbed."""
    command = [sys.executable, "-W", "ignore", str(FAULTS.with_name("record.py"))]
    command += ["--trials", "10", "--kills", "6", "--tears", "2", "--tear-every", "60"]
    command += ["--power", "3", "--full", "2", "--every", "0.3", "--seed", "4", "--limit", "100"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 trials complete" in done.stdout
    assert "points, identical" in done.stdout
