"""Start processes: each from nothing (cold), or forked off one that has fairseq imported (warm).

Both give the same process: a group of its own, that dies with the driver, with standard output and
errors appended to a log and a lock file held open.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nas_attn.errors import NasAttnError
from nas_attn.masking import without_secrets

logger = logging.getLogger(__name__)

WARM = ("fairseq_cli.", "nas_attn.cli.main", "nas_attn.fairseq_tools.measure")
"""How the names of modules begin that can be started warm."""
IMPORT_SECONDS = 300.0
FORK_SECONDS = 60.0
CLOSE_SECONDS = 5.0
MESSAGE_BYTES = 1 << 20


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
    ) -> Running:
        """Start a command.

        Args:
            command: argument list, the full path of the executable first.
            environment: all of it; what holds passwords of storages is not handed on.
            log: file to append standard output and errors to.
            keep_open: file descriptor that the process inherits, such as a lock's.

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
    ) -> Running:
        with log.open("ab") as output:
            process = _start_guarded(
                command,
                stdout=output.fileno(),
                environment=environment,
                keep_open=keep_open,
            )
        return _ColdRunning(process)

    def close(self) -> None:
        pass


class WarmLauncher:
    """Forks commands of fairseq, and our own, off a server that has fairseq imported; starts others
    cold.

    The first start for a number of CPU threads waits for the server's imports (3 to 6 s). All
    starts must come from one thread that lives as long as the launcher: Linux ends the server, and
    thereby its trainings, with the thread that started it. A server that died is replaced at the
    next start. Where a server cannot be used, all later starts are cold.
    """

    def __init__(self) -> None:
        self._cold = ColdLauncher()
        self._servers: dict[str, _Server] = {}
        self._is_usable = sys.platform == "linux"

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        keep_open: int,
    ) -> Running:
        if self._is_usable and _can_be_warm(command):
            threads = environment.get("OMP_NUM_THREADS", "")
            try:
                server = self._server(threads, environment)
                return server.start(command[2:], environment, log, keep_open)
            except _Unusable as error:
                logger.warning("trainings start cold: %s", error)
                self._is_usable = False  # what runs already goes on
        return self._cold.start(command, environment=environment, log=log, keep_open=keep_open)

    def close(self) -> None:
        """End the servers and all that they have started."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _server(self, threads: str, environment: Mapping[str, str]) -> _Server:
        """The server for a number of threads, which torch reads once as it is imported."""
        server = self._servers.get(threads)
        if server is not None and not server.is_alive():
            self._servers.pop(threads).close()
            server = None
        if server is None:
            server = _Server(environment)
            self._servers[threads] = server
            server.wait_until_ready()
        return server


class _Unusable(NasAttnError):
    """A server refuses or does not answer; the message says why."""


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
        _signal_group(self.pid, number)


class _WarmRunning:
    def __init__(self, server: _Server, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        return self.wait(0.0)

    def wait(self, timeout: float) -> int | None:
        if self._code is None:
            self._code = self._server.code_of(self.pid, timeout)
        return self._code

    def signal(self, number: int) -> None:
        _signal_group(self.pid, number)


class _Server:
    """The driver's end of a server (see `nas_attn.trials.processes.fork_server` for the other one).

    Messages are JSON objects, one a packet. To the server goes what to start, with the log and the
    file to keep open. Back come `ready`, `refused` (why), `started` (process) and `ended` (process,
    code), the last one at any time.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}
        self._is_gone = False
        with theirs:
            command = [
                sys.executable,
                "-m",
                "nas_attn.trials.processes.fork_server",
                str(theirs.fileno()),
            ]
            self._process = _start_guarded(
                command,
                stdout=subprocess.DEVNULL,
                environment=_server_environment(environment),
                keep_open=theirs.fileno(),
            )

    def wait_until_ready(self) -> None:
        """Wait for the imports.

        Raises:
            _Unusable: the server refuses to serve, or died.
        """
        self._answer("ready", IMPORT_SECONDS)

    def is_alive(self) -> bool:
        return not self._is_gone and self._process.poll() is None

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        keep_open: int,
    ) -> Running:
        """Fork a child that becomes `python -m COMMAND`.

        Raises:
            _Unusable: the server refuses or died.
            OSError: the log cannot be opened.
        """
        request = {
            "command": list(command),
            "environment": without_secrets(environment),
            "folder": str(Path.cwd()),
        }
        with log.open("ab") as output:
            self._socket.settimeout(FORK_SECONDS)
            try:
                files = [output.fileno(), keep_open]
                socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            except OSError as error:  # it died, or the request is too long for a packet
                raise _Unusable(f"the server of warm starts takes no request: {error}") from None
        pid = int(self._answer("started", FORK_SECONDS)["started"])
        self._codes.pop(pid, None)  # of an earlier process with this number
        return _WarmRunning(self, pid)

    def code_of(self, pid: int, timeout: float) -> int | None:
        """A child's exit code, told once; waits up to `timeout` seconds for it.

        All children are killed with the server.
        """
        deadline = time.monotonic() + timeout
        while not self._is_gone and pid not in self._codes:
            message = self._receive(max(0.0, deadline - time.monotonic()))
            if message is None and time.monotonic() >= deadline:
                break
        if pid in self._codes:
            return self._codes.pop(pid)
        return -signal.SIGKILL if self._is_gone else None

    def close(self) -> None:
        """End the server, which kills its children."""
        self._socket.close()
        self._is_gone = True
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, name: str, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not self._is_gone:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()  # it may yet have forked, and the child would hold the lock
                raise _Unusable(f"the server of warm starts said nothing for {timeout:.0f} s")
            message = self._receive(left)
            if message is None:
                continue
            if "refused" in message:
                raise _Unusable(f"the server of warm starts refused: {message['refused']}")
            if name in message:
                return message
        raise _Unusable("the server of warm starts died")

    def _receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message within `timeout` seconds, if any; codes are kept."""
        self._socket.settimeout(timeout)
        try:
            packet = self._socket.recv(MESSAGE_BYTES)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            packet = b""
        if not packet:
            self._is_gone = True
            return None
        message: dict[str, Any] = json.loads(packet)
        if "ended" in message:
            self._codes[message["ended"]] = message["code"]
        return message


def _start_guarded(
    command: Sequence[str], *, stdout: int, environment: Mapping[str, str], keep_open: int
) -> subprocess.Popen[bytes]:
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


def _can_be_warm(command: Sequence[str]) -> bool:
    return list(command[:2]) == [sys.executable, "-m"] and command[2].startswith(WARM)


def _server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """That of a training, with all that keeps the server fit to be forked.

    torch must not touch the GPUs to count them, and neither OpenBLAS (in numpy) nor pyarrow's
    allocator may start threads.
    """
    settings = {
        **environment,
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }
    settings.pop("NAS_ATTN_REPORT", None)
    return settings


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
