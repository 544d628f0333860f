"""Start processes by forking them off a server that has fairseq imported.

They are what a start from nothing gives, without the 3 to 6 s of imports.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_attn.errors import NasAttnError
from nas_attn.masking import without_secrets
from nas_attn.trials.processes.forking import MESSAGE_BYTES
from nas_attn.trials.processes.launch import ColdLauncher, Running, signal_group, start_guarded

logger = logging.getLogger(__name__)

IMPORT_SECONDS = 300.0
FORK_SECONDS = 60.0
CLOSE_SECONDS = 5.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


class ForkServer:
    """Forks commands that import fairseq off a server that has it imported; starts others cold.

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
        with_fairseq: bool = False,
    ) -> Running:
        if with_fairseq and self._is_usable and list(command[:2]) == [sys.executable, "-m"]:
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


class _ForkedRunning:
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
        signal_group(self.pid, number)


class _Server:
    """The driver's end of a server (see `nas_attn.trials.processes.forking` for the other one).

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
                "nas_attn.trials.processes.forking",
                str(theirs.fileno()),
                *([] if (devices := environment.get(VISIBLE)) is None else [devices]),
            ]
            self._process = start_guarded(
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
        return _ForkedRunning(self, pid)

    def code_of(self, pid: int, timeout: float) -> int | None:
        """A child's exit code, reported once; waits up to `timeout` seconds for it.

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


def _server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """That of a training, with all that keeps the server fit to be forked.

    fairseq must see no GPU, as it might start CUDA's driver to count them, and neither OpenBLAS (in
    numpy) nor pyarrow's allocator may start threads.
    """
    settings = {
        **environment,
        VISIBLE: "",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }
    settings.pop("NAS_ATTN_REPORT", None)
    return settings
