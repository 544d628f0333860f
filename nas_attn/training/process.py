"""fairseq's commands as processes of their own, with the plugin registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_attn.training.arguments import plugin_folder


@dataclass(frozen=True)
class Finished:
    """A fairseq command that has ended.

    Args:
        status: exit status; 0 if it worked.
        output: what it printed, errors among the rest.
        seconds: from start to exit.
    """

    status: int
    output: str
    seconds: float


def run_fairseq(module: str, arguments: Sequence[str], log: Path, *, threads: int = 1) -> Finished:
    """Run a fairseq command to its end.

    Args:
        module: of `fairseq_cli`, such as train or generate.
        arguments: of the command, besides --user-dir.
        log: file for the command line, as JSON, and what it printed.
        threads: of PyTorch.
    """
    command = [sys.executable, "-m", f"fairseq_cli.{module}", *arguments]
    command += ["--user-dir", str(plugin_folder())]
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(json.dumps(command) + "\n" + done.stdout, encoding="utf-8")
    return Finished(done.returncode, done.stdout, seconds)
