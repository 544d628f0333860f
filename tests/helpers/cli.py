"""The command, run by tests: as a process of its own, or in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from nas_attn.cli.main import app
from tests.helpers.forked import run_module

COMMAND = [sys.executable, "-W", "ignore", "-m", "nas_attn.cli.main"]
"""The command as a new process, for tests that kill it or wait for its start."""


def run(*arguments: str, status: int = 0, cwd: Path | None = None) -> str:
    """Run the command as a process and check its exit status.

    Returns:
        What it printed; of a command that is to fail, its standard error.
    """
    done = run_module("nas_attn.cli.main", arguments, cwd=cwd)
    assert done.status == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def invoke(*arguments: str) -> str:
    """Run the command in this process; its errors are raised.

    Returns:
        What it printed.
    """
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def kill_once(is_time: Callable[[], object], *arguments: str, seconds: float = 180) -> None:
    """Start the command as a process, and kill it by signal 9 once something holds.

    Args:
        is_time: Says whether it is time; asked again and again while the command runs.
        arguments: Arguments of the command.
        seconds: Seconds that it may take.
    """
    driver = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + seconds
        while not is_time():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
