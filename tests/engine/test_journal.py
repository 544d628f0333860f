"""The journal: damaged ends, other writers, shared folders."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import (
    JournalFileBackend,
)

from nas_attn.engine import journal, patience
from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError
from tests.helpers.fakes import OBJECTIVES, begin, notes

ENDS = {
    "half a line": b'{"op_code":4,"wor',
    "NUL bytes with an end": b"\0" * 200 + b"\n",
    "NUL bytes": b"\0" * 4096,
    "no text": b"\xff\xfe{\n",
    "a number": b"3\n",
    "no operation": b'{"op_code":77,"worker_id":"x"}\n',
    "an operation without its fields": b'{"op_code":8,"worker_id":"x","trial_id":0}\n',
    "a carriage return": b'{"op_code":8,\r"trial\r\n',
    "several": b"\0\0\n{}\nnull\n\xff",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_damaged_end_is_cut_off_before_writing(
    end: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path)
    path = tmp_path / JOURNAL
    whole = len(path.read_bytes().splitlines())
    with path.open("ab") as file:
        file.write(end)
    assert notes(tmp_path) == {"first": 1}
    assert path.read_bytes().endswith(end)
    TrialStore("one", open_storage(None, tmp_path), OBJECTIVES).set_metadata("second", 2)
    assert "is cut off" in caplog.text or "are cut off" in caplog.text
    assert notes(tmp_path) == {"first": 1, "second": 2}
    kept = json.loads((tmp_path / f"{JOURNAL}.damaged").read_text())
    assert kept["content"].encode("latin-1") == end
    assert kept["line"] == whole + 1
    others = JournalStorage(JournalFileBackend(str(path)))
    assert others.get_study_user_attrs(0) == {"first": 1, "second": 2}


def test_a_driver_that_runs_cuts_off_what_another_left(tmp_path: Path) -> None:
    store = begin(tmp_path)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(ENDS["NUL bytes with an end"])
    store.set_metadata("second", 2)
    assert store.metadata() == notes(tmp_path) == {"first": 1, "second": 2}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """Reading and writing say which, and do nothing else."""
    store = begin(tmp_path)
    path = tmp_path / JOURNAL
    with path.open("ab") as file:
        file.write(b"\0" * 9 + b"\n" + path.read_bytes().splitlines(keepends=True)[1])
    before = path.read_bytes()
    words = r"line 4 of .*journal.log cannot be read: it holds NUL bytes; nas-attn repair STUDY"
    with pytest.raises(SearchError, match=words):
        open_storage(None, tmp_path)
    with pytest.raises(SearchError, match=words):
        store.set_metadata("second", 2)
    with pytest.raises(SearchError, match=words):
        store.metadata()
    assert path.read_bytes() == before


def test_an_operation_that_optuna_cannot_apply_is_named(tmp_path: Path) -> None:
    begin(tmp_path)
    path = tmp_path / JOURNAL
    with path.open("ab") as file:
        file.write(b'{"op_code":2,"worker_id":"x","study_id":0,"user_attr":{"a":1,"b":2}}\n')
    with pytest.raises(SearchError, match=r"line 4 of .*: Optuna cannot apply it"):
        open_storage(None, tmp_path)


@pytest.mark.parametrize(
    "content", [b"dear diary\n", b"\x7fELF\x02", b"[1]\n[2]\n", b'{"op_code":0\n' * 2]
)
def test_a_file_that_is_no_journal_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(content)
    with pytest.raises(SearchError, match="is no journal of a search"):
        open_storage(None, tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b'{"op_code":0,"stu', b"\0" * 50])
def test_a_journal_whose_first_line_was_torn(content: bytes, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    begin(tmp_path)
    assert notes(tmp_path) == {"first": 1}


def test_a_record_that_is_gone_is_said(tmp_path: Path) -> None:
    store = begin(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"")
    with pytest.raises(SearchError, match="has become shorter while in use"):
        store.set_metadata("second", 2)
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(SearchError, match="was removed while in use"):
        store.set_metadata("second", 2)


WRITER = """
import sys
from pathlib import Path
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from nas_attn.engine.storage import open_storage
kind, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
path = str(folder / "journal.log")
if kind == "ours":
    storage = open_storage(None, folder)
else:
    lock = JournalFileOpenLock(path) if kind == "open" else None
    storage = JournalStorage(JournalFileBackend(path, lock))
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    storage.set_study_user_attr(0, f"{sys.argv[4]} {number}", "x" * 300)
"""


def test_optunas_own_backend_writes_at_the_same_time(tmp_path: Path) -> None:
    store, count = begin(tmp_path), 120
    kinds = ["ours", "ours", "default", "open"]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, kind, str(tmp_path), str(count), f"{kind}{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index, kind in enumerate(kinds)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    outcomes = [
        threading.Thread(target=writer.communicate, args=(b"\n", 120)) for writer in writers
    ]
    for outcome in outcomes:
        outcome.start()
    for outcome in outcomes:
        outcome.join()
    assert [writer.returncode for writer in writers] == [0] * 4
    found = notes(tmp_path)
    for index, kind in enumerate(kinds):
        assert sum(name.startswith(f"{kind}{index} ") for name in found) == count
    assert store.metadata() == found
    assert not (tmp_path / f"{JOURNAL}.lock").is_symlink()
    assert not (tmp_path / f"{JOURNAL}.damaged").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOLCK, errno.ESTALE, errno.EFBIG])
@pytest.mark.parametrize("where", ["lock", "write", "open"])
def test_a_shared_folder_that_is_away_is_waited_for(
    number: int,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = begin(tmp_path)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    module, name = {"lock": (fcntl, "flock"), "write": (os, "write"), "open": (os, "open")}[where]
    original, failures = getattr(module, name), [1, 1, 1]

    def fail(*arguments: Any) -> Any:
        if failures:
            failures.pop()
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    monkeypatch.setattr(module, name, fail)
    with caplog.at_level(logging.WARNING):
        store.set_metadata("second", 2)
    assert os.strerror(number) in caplog.text
    assert notes(tmp_path) == {"first": 1, "second": 2}


def test_a_shared_folder_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)

    def fail(self: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal.Journal, "_sync_with_backend", fail)
    with pytest.raises(SearchError, match=r"has not answered .* Input/output error"):
        open_storage(None, tmp_path)


def test_a_folder_without_leave_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begin(tmp_path)

    def refuse(*arguments: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SearchError, match=r"cannot write the record .*: Permission denied"):
        store.set_metadata("second", 2)
