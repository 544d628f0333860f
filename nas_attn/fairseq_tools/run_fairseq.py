"""fairseq's commands as processes of their own, with the plugin registered."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_attn.fairseq_tools.commands import plugin_folder
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.scores import end_of_log

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Finished:
    """A fairseq command that has ended.

    Args:
        status: Exit status; 0 if it worked.
        output: The end of what it printed, errors among the rest.
        seconds: Seconds from start to exit.
    """

    status: int
    output: str
    seconds: float


def run_fairseq(
    module: str,
    arguments: Sequence[str],
    log: Path,
    *,
    threads: int = 1,
    launcher: Launcher | None = None,
) -> Finished:
    """Run a fairseq command to its end.

    Args:
        module: Module of `fairseq_cli`, such as train or generate.
        arguments: Arguments of the command, besides --user-dir.
        log: File for the command line, as JSON, and what it printed.
        threads: Threads of PyTorch.
        launcher: Launcher that starts the process; a new one from nothing if left out.
    """
    command = [sys.executable, "-m", f"fairseq_cli.{module}", *arguments]
    command += ["--user-dir", str(plugin_folder())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    log.parent.mkdir(parents=True, exist_ok=True)
    first = (json.dumps(command) + "\n").encode()
    log.write_bytes(first)
    began = time.perf_counter()
    with Path(os.devnull).open("rb") as nothing:
        running = (launcher or ColdLauncher()).start(
            command,
            environment=environment,
            log=log,
            keep_open=nothing.fileno(),
            with_fairseq=True,
        )
        status = None
        while status is None:
            status = running.wait(WAIT_SECONDS)
    seconds = time.perf_counter() - began
    return Finished(status, end_of_log(log, after=len(first)), seconds)
