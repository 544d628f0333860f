"""Locked files: given back by the kernel when the holder dies, and never waited for in silence."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import socket
import time
from pathlib import Path

from nas_attn.engine.patience import patiently
from nas_attn.trials.processes.holders import is_stopped

logger = logging.getLogger(__name__)

SAY_SECONDS = 30.0
"""Seconds between two messages about a wait."""
LONGEST_PAUSE = 0.05


class FileLock:
    """A lock that the kernel gives back when its holder dies, so that nobody waits for the dead.

    The file says who holds it, or held it last. As a context, it waits for a folder that is away.

    Args:
        path: Path of the file, which stays.
        what: Name of what it protects, in words.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self.last_holder = ""
        """Who held it before, as of the last `acquire`."""
        self._file: int | None = None

    def acquire(self) -> None:
        """Wait for the lock; who holds it is said every `SAY_SECONDS`.

        Raises:
            OSError: the file cannot be opened or locked.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._wait(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self.last_holder = _read_holder(file)
        with contextlib.suppress(OSError):  # the disk may be full
            me = f"{os.getpid()} {machine()}"
            if self.last_holder != me:
                os.ftruncate(file, 0)
                os.pwrite(file, me.encode(), 0)
        with contextlib.suppress(OSError):
            os.utime(file)

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> None:
        patiently(self.acquire)

    def __exit__(self, *error: object) -> None:
        self.release()

    def _wait(self, file: int) -> None:
        pause, say_at = 0.001, time.monotonic() + SAY_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return
            if time.monotonic() > say_at:
                say_at = time.monotonic() + SAY_SECONDS
                logger.warning("waiting for %s: %s", self.what, holder_text(_read_holder(file)))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


@functools.cache
def machine() -> str:
    """This machine since it was started; names alone are not unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def holder_text(holder: str) -> str:
    """Who holds a lock, in words, with a way out if that process is stopped.

    Args:
        holder: Number of the process and its machine, as locked files say it.
    """
    pid, _, where = holder.partition(" ")
    if not pid.isdigit():
        return "another process holds its lock"
    text = f"process {pid} on {where.partition(' ')[0]} holds its lock"
    if where == machine() and is_stopped(int(pid)):
        text += f" and is stopped (kill -CONT {pid} lets it go on, kill -9 {pid} ends it)"
    return text


def _read_holder(file: int) -> str:
    try:
        return os.pread(file, 500, 0).decode(errors="replace").strip()
    except OSError:
        return ""
