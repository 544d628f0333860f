"""The journal file of a record, which survives what files do.

A journal holds one operation a line, and a trial's number is the count of those created before it.
So a line must never be lost, written twice, half, or into another one. Optuna's own
`JournalFileBackend` (a notebook, optuna-dashboard) may write at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import time
from collections.abc import Generator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from nas_attn.engine.locks import FileLock
from nas_attn.engine.optuna_lock import OptunaLock
from nas_attn.engine.patience import PASSING
from nas_attn.errors import SearchError

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.2
"""What looks damaged is read again after so long, as someone may be writing it."""

_FIELDS: dict[int, dict[str, type | tuple[type, ...]]] = {
    0: {"study_name": str, "directions": list},
    1: {"study_id": int},
    2: {"study_id": int, "user_attr": dict},
    3: {"study_id": int, "system_attr": dict},
    4: {"study_id": int, "datetime_start": (str, type(None))},
    5: {
        "trial_id": int,
        "param_name": str,
        "param_value_internal": (int, float),
        "distribution": str,
    },
    6: {"trial_id": int, "state": int, "values": (list, type(None))},
    7: {"trial_id": int, "step": int, "intermediate_value": (int, float)},
    8: {"trial_id": int, "user_attr": dict},
    9: {"trial_id": int, "system_attr": dict},
    10: {},
}
"""What Optuna reads of each operation, by its code."""


def parse_line(line: bytes) -> dict[str, Any]:
    """Read a line of a journal.

    Raises:
        ValueError: it is no operation; says why.
    """
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    if b"\0" in line:
        raise ValueError("it holds NUL bytes")
    log: Any
    try:
        log = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    fields = _FIELDS.get(log.get("op_code", -1)) if isinstance(log, dict) else None
    if fields is None or not isinstance(log.get("worker_id"), str):
        raise ValueError("it is no operation of Optuna")
    for name, kind in fields.items():
        if not isinstance(log.get(name), kind):
            raise ValueError(f"its {name} is missing or of another kind")
    if log.get("state", 0) not in range(5):
        raise ValueError("its state is none of Optuna's")
    if not log.get("params", {}).keys() <= log.get("distributions", {}).keys():
        raise ValueError("its params lack distributions")
    for name in ("datetime_start", "datetime_complete"):
        if log.get(name) is not None:
            datetime.fromisoformat(log[name])
    return dict(log)


class Unreadable(SearchError):
    """A line that is no operation, with readable ones after it."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(
            f"line {line} of {path} cannot be read: {reason}; nas-attn repair STUDY keeps all that "
            "is whole"
        )
        self.line = line


class WholeLines(BaseJournalBackend):
    """A journal that never holds half a line, whatever happened while it was written.

    Args:
        path: Path of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.open("ab").close()
        self._lock = FileLock(path.with_name(path.name + ".flock"), f"the record {path}")
        self._optuna = OptunaLock(path, self._lock)
        self._starts = [0]
        """Where each line begins, as far as they were read."""
        self._checked = (0, 0)
        """Lines and bytes that are known to be whole."""
        self.last_read = 0
        """Number of the line that was given out last, from 1."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold our lock and Optuna's."""
        with self._lock:
            self._optuna.acquire()
            try:
                yield
            finally:
                self._optuna.release()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read on from a line; what is damaged at the end is not there yet.

        Raises:
            SearchError: another line is damaged, or this is no journal.
        """
        number, damaged = log_number_from, None
        while True:
            try:
                for log in self._read(number):
                    number += 1
                    self.last_read = number
                    yield log
            except Unreadable as error:
                if damaged == error.line:
                    raise
                damaged = error.line  # someone may be cutting it off
                time.sleep(LOOK_AGAIN_SECONDS)
            else:
                return

    def _read(self, number: int) -> Iterator[dict[str, Any]]:
        offset = self._starts[number]
        bad: tuple[int, str] | None = None
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < offset:
                raise self._shorter()
            file.seek(offset)
            for line, content in enumerate(file, start=number):
                try:
                    log = parse_line(content)
                except ValueError as error:
                    bad = bad or (line, str(error))
                    continue
                if bad is not None:
                    raise Unreadable(self.path, bad[0] + 1, bad[1])
                offset += len(content)
                if len(self._starts) == line + 1:
                    self._starts.append(offset)
                self._checked = max(self._checked, (line + 1, offset))
                yield log
            if bad is not None and bad[0] == 0:
                self._check_begun(file.fileno())

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines at the end, whole or not at all.

        Raises:
            OSError: there is no room now, or the folder is away.
            SearchError: what is there cannot be read, or nothing can be written.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            with self.locked():
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
                try:
                    end = self._mend_end(file)
                    _append(file, text, end)
                    self._checked = (self._checked[0] + len(logs), end + len(text))
                finally:
                    os.close(file)
        except FileNotFoundError:
            raise SearchError(f"the record {self.path} was removed while in use") from None
        except OSError as error:
            if error.errno in PASSING:
                raise
            raise SearchError(f"cannot write the record {self.path}: {error.strerror}") from error

    def _mend_end(self, file: int) -> int:
        """Cut off what is damaged at the end, and keep it; returns where the journal ends."""
        lines, checked = self._checked
        size = os.fstat(file).st_size
        if size < checked:
            raise self._shorter()
        new = os.pread(file, size - checked, checked)
        whole, end, reason = 0, 0, ""
        for count, content in enumerate(io.BytesIO(new)):
            try:
                parse_line(content)
            except ValueError as error:
                reason = reason or str(error)
                continue
            if reason:
                raise Unreadable(self.path, lines + whole + 1, reason)
            whole, end = count + 1, end + len(content)
        self._checked = (lines + whole, checked + end)
        if size == checked + end:
            return size
        time.sleep(LOOK_AGAIN_SECONDS)
        if os.fstat(file).st_size != size or os.pread(file, len(new), checked) != new:
            return self._mend_end(file)
        if self._checked == (0, 0):
            self._check_begun(file)
        keep_damaged(self.path, self._checked[0] + 1, new[end:], reason)
        os.ftruncate(file, checked + end)
        logger.warning(
            "the end of %s was damaged (%s), as after a power failure or a full disk: %d bytes are "
            "cut off, and kept in %s",
            self.path,
            reason,
            size - checked - end,
            side_file(self.path).name,
        )
        return checked + end

    def _check_begun(self, file: int) -> None:
        """A file without any readable line may be a journal whose first one was being written."""
        content = os.pread(file, 1 << 20, 0)
        beginning = b'{"op_code":'
        is_begun = content[: len(beginning)] == beginning[: len(content)]
        if content.strip(b"\0\n") and not (is_begun and b"\n" not in content[:-1]):
            raise SearchError(
                f"{self.path} is no journal of a search: none of its lines is an operation of "
                "Optuna; move it away, or give the study another name"
            )

    def _shorter(self) -> SearchError:
        return SearchError(
            f"the record {self.path} has become shorter while in use, so somebody has written "
            "another one; start again"
        )


class Journal(JournalStorage):
    """Optuna's storage on a journal, which names the line that it cannot apply."""

    def __init__(self, path: Path) -> None:
        self._lines = WholeLines(path)
        super().__init__(self._lines)

    def _sync_with_backend(self) -> None:
        try:
            super()._sync_with_backend()
        except (OSError, OptunaError, SearchError):
            raise
        except KeyError as error:
            if error.args == ("Record does not exist.",):
                raise  # what was asked for
            raise self._unreadable(error) from error
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> Unreadable:
        reason = f"Optuna cannot apply it ({type(error).__name__}: {error})"
        return Unreadable(self._lines.path, self._lines.last_read, reason)


def side_file(journal: Path) -> Path:
    """Where damaged lines of a journal are kept."""
    return journal.with_name(journal.name + ".damaged")


def keep_damaged(journal: Path, line: int, content: bytes, reason: str) -> None:
    """Keep what is taken out of a journal, as a line of JSON; its bytes are the text's in Latin-1.

    Raises:
        OSError: there is no room.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    kept = {"at": now, "line": line, "reason": reason, "content": content.decode("latin-1")}
    with side_file(journal).open("a", encoding="ascii") as file:
        file.write(json.dumps(kept) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _append(file: int, text: bytes, end: int) -> None:
    written = 0
    try:
        written = os.write(file, text)
        if written < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError:
        # Unless somebody who broke the lock has written behind it.
        if written and os.fstat(file).st_size == end + written:
            os.ftruncate(file, end)
        raise
