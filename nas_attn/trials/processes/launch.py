"""Start processes, each a group of its own that dies with the driver.

Standard output and errors are appended to a log, and a lock file is held open.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nas_attn.masking import without_secrets


class Running(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number, and that of its process group."""

    def poll(self) -> int | None:
        """Exit status, the negative number of the signal that killed it, or None if it runs."""

    def wait(self, timeout: float) -> int | None:
        """Like `poll`, but wait up to `timeout` seconds for the end."""

    def signal(self, number: int) -> None:
        """Send a signal to whatever is left of its process group."""


class Launcher(Protocol):
    """Starts processes."""

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        keep_open: int,
        with_fairseq: bool = False,
    ) -> Running:
        """Start a command.

        Args:
            command: Argument list, the full path of the executable first.
            environment: All environment variables; what holds passwords of storages is not handed
                on.
            log: File to append standard output and errors to.
            keep_open: File descriptor that the process inherits, such as a lock's.
            with_fairseq: Whether the command is a module of this Python that imports fairseq, which
                a launcher may have imported already.

        Raises:
            OSError: the log cannot be opened or the process cannot be started.
        """

    def close(self) -> None:
        """End what the launcher keeps running for itself."""


class ColdLauncher:
    """Starts each command as a new process."""

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        keep_open: int,
        with_fairseq: bool = False,
    ) -> Running:
        with log.open("ab") as output:
            process = start_guarded(
                command,
                stdout=output.fileno(),
                environment=environment,
                keep_open=keep_open,
            )
        return _ColdRunning(process)

    def close(self) -> None:
        pass


class _ColdRunning:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> None:
        signal_group(self.pid, number)


def start_guarded(
    command: Sequence[str], *, stdout: int, environment: Mapping[str, str], keep_open: int
) -> subprocess.Popen[bytes]:
    """Start a command under a guard, in a process group of its own."""
    guard = [sys.executable, "-S", str(Path(__file__).with_name("guard.py")), str(os.getpid())]
    return subprocess.Popen(
        [*guard, *command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=without_secrets(environment),
        # Ctrl-C reaches the driver alone, which then stops its trainings in order.
        process_group=0,
        pass_fds=(keep_open,),
    )


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
