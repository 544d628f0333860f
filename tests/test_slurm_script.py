"""The job script for Slurm, on nodes that are stubs: executables of ours on PATH."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

STUBS = {
    "scontrol": 'printf "first\\nsecond\\nthird\\n"',
    "hostname": "echo 10.0.0.1 fd00::1",
    # What runs on a node is run here, with the node's name beside it in the log.
    "srun": """
        for argument; do
            case $argument in
                --nodelist=*) export NODE=${argument#*=} ;;
                --*) ;;
                *) break ;;
            esac
            shift
        done
        exec "$@"
    """,
    "ray": """
        echo "$NODE ray $*" >>"$LOG"
        echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$LOG.tokens"
        case $1 in
            start)
                [ "$NODE" = "$BROKEN" ] && exit 3
                [ "$NODE" = "$DEAF" ] || echo "$NODE" >>"$UP"
                exec sleep 60
                ;;
            status)
                [ -s "$UP" ] || exit 1
                sed "s/.*/ 1 node_&/" "$UP"
                ;;
        esac
    """,
    "nas-attn": """
        echo "nas-attn $*" >>"$LOG"
        echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$LOG.tokens"
        exit "${STATUS:-0}"
    """,
    "sleep": 'exec /bin/sleep "$([ "$1" = 60 ] && echo 60 || echo 0.05)"',
}


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on three nodes."""
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "UP": str(tmp_path / "up"),
        "NODE": "batch",
        "BROKEN": "",
        "DEAF": "",
        "SLURM_JOB_NODELIST": "first,second,third",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "2",
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = ["bash", str(ROOT / "studies" / "slurm_ray.sh"), *arguments]
    return subprocess.run(
        script, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def lines(environment: dict[str, str]) -> list[str]:
    """What was started, without the questions whether the cluster is up."""
    log = Path(environment["LOG"]).read_text().splitlines()
    return [line for line in log if "ray status" not in line]


def test_a_search_on_all_nodes(nodes: dict[str, str]) -> None:
    done = run(nodes, "my_study.yaml", "--set", "search.trials=3")
    assert done.returncode == 0, done.stderr
    head, *workers, search = lines(nodes)
    shape = "--num-cpus=8 --num-gpus=2 --block"
    assert head == (
        "first ray start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false "
        + shape
    )
    assert sorted(workers) == [
        f"{name} ray start --address=10.0.0.1:6379 {shape}" for name in ("second", "third")
    ]
    assert search == ("nas-attn search my_study.yaml --set search.trials=3 --address=10.0.0.1:6379")
    assert "3 of 3 nodes are up" in done.stdout
    (token,) = set(Path(nodes["LOG"] + ".tokens").read_text().splitlines())
    assert re.fullmatch("token [0-9a-f]{64}", token)  # all of them know the same one


def test_the_exit_status_is_that_of_the_search(nodes: dict[str, str]) -> None:
    assert run({**nodes, "STATUS": "2"}, "my_study.yaml").returncode == 2


@pytest.mark.parametrize(
    ("broken", "seconds", "message"),
    [("BROKEN", "60", "Ray did not start on first"), ("DEAF", "1", "no Ray head answers")],
)
def test_without_a_head_nothing_is_searched(
    broken: str, seconds: str, message: str, nodes: dict[str, str]
) -> None:
    """It ends at once, or is there and does not answer in time."""
    done = run({**nodes, broken: "first", "RAY_START_SECONDS": seconds}, "my_study.yaml")
    assert done.returncode == 1
    assert message in done.stderr
    assert "no Ray head answers at 10.0.0.1:6379 (first)" in done.stderr
    assert len(lines(nodes)) <= 1  # the head at most


def test_a_node_that_does_not_come_up_is_done_without(nodes: dict[str, str]) -> None:
    done = run({**nodes, "BROKEN": "second"}, "my_study.yaml")
    assert done.returncode == 0
    assert "Ray did not start on second" in done.stderr
    assert "2 of 3 nodes are up" in done.stdout
    assert lines(nodes)[-1].startswith("nas-attn search")
