"""Where the record is kept: any Optuna storage, and a journal file that survives what files do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import time
import warnings
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from nas_attn.errors import SearchError

JOURNAL = "journal.log"
OPEN_SECONDS = 10.0
"""For how long a storage is asked for the first time before its error counts."""


class _FileLock(BaseJournalFileLock):
    """A lock that the kernel gives back when its holder dies, so that nobody waits for the dead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        file = self._path.open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _WholeLines(JournalFileBackend):
    """A journal that never holds half a line, whatever happened while it was written.

    On a full disk a line can be cut off, and the next one written would make both unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._journal = path
        self._journal_lock = _FileLock(path.with_name(path.name + ".flock"))
        super().__init__(str(path), lock_obj=self._journal_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._journal_lock.acquire()
        try:
            with self._journal.open("r+b", buffering=0) as file:
                end = _drop_half_line(file)
                try:
                    written = file.write(text)
                    if written < len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        finally:
            self._journal_lock.release()


def _drop_half_line(file: IO[bytes]) -> int:
    """Cut off what follows the last end of a line, and go to the end; returns where that is."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
    return file.seek(end)


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open an Optuna storage.

    Args:
        url: of a database (such as postgresql+psycopg://...), grpc://HOST:PORT for Optuna's proxy,
            or None for the journal file of a run folder.
        folder: the run folder.

    Raises:
        SearchError: the storage cannot be reached; the message is the database's.
    """
    try:
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
            return JournalStorage(_WholeLines(folder / JOURNAL))
        if url.startswith("grpc://"):
            return _open_proxy(url.removeprefix("grpc://"))
        return _open_database(url)
    except Exception as error:  # database drivers raise their own kinds
        raise SearchError(f"cannot open the storage {url or folder / JOURNAL}: {error}") from error


def _open_proxy(address: str) -> BaseStorage:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("the address of a proxy is HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    proxy.wait_server_ready(OPEN_SECONDS)
    return proxy


def _open_database(url: str) -> BaseStorage:
    from sqlalchemy.exc import DBAPIError

    # Drivers that start together all make the tables of a new database, and one succeeds.
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return _connect(url)
        except DBAPIError:
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.1, 0.5))


def _connect(url: str) -> BaseStorage:
    # A connection is tried before it is used: the server may have been started again meanwhile.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    return optuna.storages.get_storage(storage)
