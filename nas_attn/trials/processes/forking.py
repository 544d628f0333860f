"""A server that has fairseq imported and forks off processes that run fairseq's commands.

`python -m nas_attn.trials.processes.forking FD` is started by `ForkServer`, which holds the
other end of the socket FD and says there what the messages are. The server never trains: it has one
thread and no CUDA context, so what it forks is as good as a process that was started from nothing,
without the 3 to 6 s of imports. It ends with its driver, and its children with it.

fairseq counts the GPUs as it is imported, and to count them torch may have to start CUDA's driver,
which has threads and does not survive a fork. So the server is started with none to see; a second
argument says which there are (the value of CUDA_VISIBLE_DEVICES; all of them without it), and its
children count anew.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_attn.light_fairseq import defer_sklearn
from nas_attn.trials.processes.guard import die_with

MESSAGE_BYTES = 1 << 20
# torch's optimisers import torch._dynamo at their first step, which takes a second.
IMPORTED = ("fairseq_cli.train", "fairseq_cli.generate", "fairseq_plugin", "torch._dynamo")
NO_GPUS = "import sys, torch; sys.exit(torch.cuda.is_available())"
"""A program that ends with status 0 if a process that is not forked sees no GPU either."""


@dataclass(frozen=True)
class Request:
    """What a child is to become.

    Args:
        command: Module and its arguments, as after `python -m`.
        environment: All environment variables.
        folder: Folder to work in.
        files: Descriptors of the log, and of the file that is only kept open.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    files: tuple[int, int]


def main() -> None:
    """Serve until the socket closes; in a child, run the command that was asked for."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    devices = sys.argv[2] if len(sys.argv) > 2 else None
    reason = import_fairseq() or why_not_fork() or why_not_cuda(devices)
    if reason is not None:
        _tell(channel, refused=reason)
        return
    _tell(channel, ready=True)
    request = serve(channel)
    if request is not None:
        # Returning here, a child ends as Python ends: traceback, status, exit handlers, flushing.
        become(request)


def import_fairseq() -> str | None:
    """Import what trainings import; returns why there is no serving, or None."""
    defer_sklearn()
    try:
        for name in IMPORTED:
            importlib.import_module(name)
        import torch
    except Exception as error:  # the driver's log is where this can be read
        return f"{type(error).__name__}: {error}"
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "CUDA is initialised by imports, and would not work in a forked process"
    # Else the first garbage collection of every child copies all that it shares with the server.
    gc.collect()
    gc.freeze()
    return None


def why_not_fork() -> str | None:
    """Why a fork is unsafe now, or None: it copies one thread, and locks that others hold."""
    names = [_thread_name(path) for path in Path("/proc/self/task").iterdir()]
    if len(names) > 1:
        return f"the server has {len(names)} threads: {', '.join(sorted(names))}"
    return None


def why_not_cuda(devices: str | None) -> str | None:
    """Why forked processes cannot use the GPUs, or None: a child tries.

    A driver that does not survive the fork may also hide the GPUs. So where the child sees none, a
    process that is not forked says whether there are any.

    Args:
        devices: CUDA_VISIBLE_DEVICES for the child; None for all.
    """
    import torch

    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return None
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if devices is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = devices
            if torch.cuda.is_available():
                torch.zeros(1, device="cuda")
                status = 0
            elif devices == "":
                status = 0
            else:
                status = subprocess.run([sys.executable, "-c", NO_GPUS], check=False).returncode
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return None if status == 0 else "CUDA does not work in a forked process"


def serve(channel: socket.socket) -> Request | None:
    """Fork off what is asked for and report how it ended, until the other end of the socket closes.

    Returns:
        In a child the request; in the server None, at its end.
    """
    server = os.getpid()
    children: dict[int, int] = {}
    """Process number of each child by a descriptor that becomes readable when it ends."""
    try:
        while True:
            ready, _, _ = select.select([channel.fileno(), *children], [], [])
            for descriptor in set(ready) & set(children):
                pid = children.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                _tell(channel, ended=pid, code=os.waitstatus_to_exitcode(status))
            if channel.fileno() not in ready:
                continue
            request = _receive(channel)
            if request is None:
                break
            reason = why_not_fork()
            if reason is not None:
                _tell(channel, refused=reason)
                _close(*request.files)
                continue
            pid = os.fork()
            if pid == 0:
                channel.close()
                _close(*children)
                os.setpgid(0, 0)
                die_with(server)
                return request
            with contextlib.suppress(OSError):  # the child may have done it, and even ended
                os.setpgid(pid, pid)
            children[os.pidfd_open(pid)] = pid
            # The lock among them is to be held by the child alone.
            _close(*request.files)
            _tell(channel, started=pid)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the driver is gone
    for pid in children.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def become(request: Request) -> None:
    """Go on as `python -m COMMAND` would in the request's environment."""
    log, _ = request.files
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    _close(log)
    os.environ.clear()
    os.environ.update(request.environment)
    importlib.import_module("fairseq_plugin.gpu_count").count_gpus_again()
    os.chdir(request.folder)
    sys.argv = list(request.command)
    module = request.command[0]
    # Imported anew, it is as fresh as with -m; what it imports itself is there.
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _receive(channel: socket.socket) -> Request | None:
    packet, files, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
    if not packet:
        return None
    message: dict[str, Any] = json.loads(packet)
    return Request(
        command=tuple(message["command"]),
        environment=message["environment"],
        folder=message["folder"],
        files=(files[0], files[1]),
    )


def _tell(channel: socket.socket, **message: Any) -> None:
    channel.send(json.dumps(message).encode())


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _thread_name(task: Path) -> str:
    return (task / "comm").read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    main()
