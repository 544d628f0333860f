"""Python modules run as processes of their own, without paying for the imports each time.

`run_module` is `python -W ignore -m MODULE ARGUMENTS` to its caller: another process, with its own
arguments, folder, environment, standard streams and exit status. It is forked off a server that has
imported the large packages, one server a test process. Our own modules are imported anew each time.

Unlike the search's own server (`fork_server`, for trainings that log to a file), this one keeps
standard output and standard error apart. What measures starts, or is sent signals, starts from
nothing instead: `tests.helpers.cli.COMMAND`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nas_attn.light_fairseq import defer_sklearn
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.forking import why_not_fork
from nas_attn.trials.processes.guard import die_with
from nas_attn.trials.processes.launch import Running

IMPORTED = (
    "fairseq_cli.train", "fairseq_cli.generate", "fairseq_plugin", "torch._dynamo", "optuna",
    "pandas", "matplotlib.pyplot", "plotly.graph_objects", "jinja2", "typer", "rich.console",
)  # fmt: skip
"""torch's optimisers import its compiler at their first step."""
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Else packages start threads, or touch a GPU, as they are imported, and cannot be forked after."""
MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Done:
    """A process that has ended.

    Args:
        status: its exit status, or the negative number of the signal that killed it.
        stdout: what it printed.
        stderr: its standard error.
    """

    status: int
    stdout: str
    stderr: str


@cache
def fork_server() -> ForkServer:
    """A launcher of trainings that is shared by the tests of a process."""
    server = ForkServer()
    atexit.register(server.close)
    return server


class SharedForkServer:
    """A launcher of one search of the test process, off the server that all of them share.

    Closing it ends what it started, as closing a server of its own would.
    """

    def __init__(self) -> None:
        self._started: list[Running] = []

    def start(self, command: Sequence[str], **how: Any) -> Running:
        running = fork_server().start(command, **how)
        self._started.append(running)
        return running

    def close(self) -> None:
        for running in self._started:
            if running.poll() is None:
                running.signal(signal.SIGKILL)
        self._started.clear()


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    stdin: str = "",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a module to its end as a process.

    Args:
        module: full name.
        arguments: of the command line.
        stdin: what it reads.
        cwd: folder to work in; the current one if left out.
        environment: all of it; this process's if left out.
    """
    request = {
        "command": [module, *arguments],
        "folder": str(Path.cwd() if cwd is None else cwd),
        "environment": dict(os.environ if environment is None else environment),
    }
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        given.write(stdin.encode())
        streams = (given, stdout, stderr)
        for stream in streams:
            stream.seek(0)
        status = _server().run(json.dumps(request).encode(), [s.fileno() for s in streams])
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return Done(status, *texts)


class _Server:
    """This side of a server: it runs one process at a time."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-W", "ignore", "-m", __name__]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        refused = self._receive()
        assert refused is None, refused

    def run(self, request: bytes, streams: Sequence[int]) -> int:
        try:
            socket.send_fds(self._socket, [request], list(streams))
            return int(str(self._receive()))
        except BaseException:
            self.close()  # it waits for a process that nobody else waits for
            raise

    def close(self) -> None:
        global _running
        _running = None
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _receive(self) -> object:
        packet = self._socket.recv(MESSAGE_BYTES)
        assert packet, "the server of forked processes died"
        return json.loads(packet)


_running: _Server | None = None


def _server() -> _Server:
    global _running
    if _running is None:
        _running = _Server()
        atexit.register(_running.close)
    return _running


def main() -> None:
    """Serve the process that holds the other end of the socket, until it ends."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with(int(sys.argv[2]))
    defer_sklearn()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    channel.send(json.dumps(why_not_fork()).encode())
    server = os.getpid()
    while True:
        packet, streams, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 3)
        if not packet:
            return
        pid = os.fork()
        if pid == 0:
            break
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(pid, 0)
        channel.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
    channel.close()
    die_with(server)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    _become(**json.loads(packet))


def _become(command: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder  # as -m has it
    sys.argv = command
    sys.orig_argv = [sys.executable, "-W", "ignore", "-m", *command]
    sys.modules.pop(command[0], None)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
