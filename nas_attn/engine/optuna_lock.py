"""The lock that Optuna takes on a journal, taken as Optuna would."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from pathlib import Path

from nas_attn.engine.locks import LONGEST_PAUSE, SAY_SECONDS, FileLock, machine

logger = logging.getLogger(__name__)

STALE_SECONDS = 30.0
"""Optuna's lock counts as left by the dead after so long without any change, as in Optuna."""


class OptunaLock:
    """The lock that Optuna's `JournalFileBackend` takes: a symbolic link, or a file, beside it.

    Whoever holds ours may take this one, so of ours only a dead process can have left it.

    Args:
        journal: The file that it protects.
        ours: The lock that is taken before.
    """

    def __init__(self, journal: Path, ours: FileLock) -> None:
        self._journal = journal
        self._path = journal.with_name(journal.name + ".lock")
        # Optuna asks what the link points to when it was written last, to see who is dead: this
        # file is touched whenever the lock is taken.
        self._target = ours.path.name
        self._ours = ours
        self._file: int | None = None

    def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            OSError: there can be no such file.
        """
        pause, seen, began = 0.001, None, time.monotonic()
        since, say_at = began, began + SAY_SECONDS
        while not self._make():
            state = self._look()
            now = time.monotonic()
            if state is None:
                continue
            if state != seen:
                seen, since = state, now
            is_dead = self._is_of_our_dead() or now - since > STALE_SECONDS
            if is_dead and self._look() == state:
                logger.warning("%s was left behind by a process that died: removed", self._path)
                self._path.unlink(missing_ok=True)
                continue
            if now > say_at:
                say_at = now + SAY_SECONDS
                logger.warning("waiting for Optuna's lock %s", self._path)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def release(self) -> None:
        """Give it back, unless somebody has broken it."""
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._path.unlink()
        self._file = None

    def _make(self) -> bool:
        try:
            self._path.symlink_to(self._target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # No links here, so Optuna must be using its other lock.
            try:
                file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return False
            self._file = os.fstat(file).st_ino
            os.close(file)
        return True

    def _look(self) -> tuple[int, ...] | None:
        """What changes while anybody is at work; None if the lock is gone."""
        try:
            lock, journal = os.lstat(self._path), self._journal.stat()
        except FileNotFoundError:
            return None
        return lock.st_ino, lock.st_ctime_ns, journal.st_size, journal.st_mtime_ns

    def _is_ours(self) -> bool:
        if self._file is not None:
            return os.lstat(self._path).st_ino == self._file
        return str(self._path.readlink()) == self._target

    def _is_of_our_dead(self) -> bool:
        # A lock of files may not reach other machines, so there it is waited for.
        if self._ours.last_holder.partition(" ")[2] != machine():
            return False
        with contextlib.suppress(OSError):
            return str(self._path.readlink()) == self._target
        return False
