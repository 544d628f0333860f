"""fairseq-train on several processes of this machine, which talk by gloo and need no GPU."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nas_attn.trials.processes.launch import Running
from nas_attn.validation_log import REPORT_FILE
from tests.helpers.forked import fork_server
from tests.helpers.paths import ROOT

USER_DIR = ROOT / "tests" / "helpers" / "gpus_that_are_not"
LIMIT_SECONDS = 300.0
"""Longest that processes may take; one that waits for another would wait much longer."""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_on(ranks: int, arguments: Sequence[str], folder: Path) -> list[str]:
    """Train with one process a rank, all forked off the server that has fairseq imported.

    Args:
        ranks: Number of processes.
        arguments: Of fairseq-train, without its --save-dir and what is said of processes.
        folder: For checkpoints, the report of validations, and each rank's log.

    Returns:
        What each rank printed.
    """
    arguments = [*arguments, f"--save-dir={folder}", f"--user-dir={USER_DIR}"]
    if ranks > 1:
        arguments += [f"--distributed-world-size={ranks}", "--distributed-no-spawn"]
        arguments += [f"--distributed-init-method=tcp://127.0.0.1:{free_port()}"]
        arguments += ["--distributed-backend=gloo"]
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
    with Path(os.devnull).open("rb") as nothing:
        running = [
            start([*arguments, *([f"--distributed-rank={rank}"] if ranks > 1 else [])],
                  log, folder / REPORT_FILE, nothing.fileno())
            for rank, log in enumerate(logs)
        ]  # fmt: skip
        statuses = wait_for(running)
    outputs = [log.read_text() for log in logs]
    assert statuses == [0] * ranks, "\n".join(output[-3000:] for output in outputs)
    return outputs


def start(
    arguments: Sequence[str], log: Path, report: Path, keep_open: int, **environment: str
) -> Running:
    """Start fairseq-train, forked off the server that has fairseq imported."""
    log.write_bytes(b"")
    own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "NAS_ATTN_REPORT": str(report)}
    return fork_server().start(
        [sys.executable, "-m", "fairseq_cli.train", *arguments],
        environment={**os.environ, **own, **environment},
        log=log,
        keep_open=keep_open,
        with_fairseq=True,
    )


def wait_for(running: Sequence[Running]) -> list[int]:
    """Exit statuses of processes; all are killed once one has failed or the time is over."""
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        statuses = [process.wait(0.05) for process in running]
        if None not in statuses:
            return [int(status or 0) for status in statuses]
        if any(statuses) or time.monotonic() > limit:
            time.sleep(1.0)  # the others may be about to say why
            for process in running:
                if process.poll() is None:
                    process.signal(9)
            return [int(process.wait(10.0) or 0) for process in running]
