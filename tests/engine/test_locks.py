"""Locks of a journal: ours and those of Optuna, of the dead and the stopped."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

from nas_attn.engine import locks, optuna_lock
from nas_attn.engine.locks import FileLock
from nas_attn.engine.optuna_lock import OptunaLock
from nas_attn.engine.storage import JOURNAL
from tests.helpers.fakes import begin, notes

LOCKS: list[Callable[[str], JournalFileSymlinkLock | JournalFileOpenLock]] = [
    JournalFileSymlinkLock,
    JournalFileOpenLock,
]


@pytest.mark.parametrize("kind", LOCKS)
def test_a_live_lock_of_optuna_is_waited_for(kind: Any, tmp_path: Path) -> None:
    store = begin(tmp_path)
    lock = kind(str(tmp_path / JOURNAL))
    lock.acquire()
    size = (tmp_path / JOURNAL).stat().st_size
    write = threading.Thread(target=store.set_metadata, args=("second", 2))
    write.start()
    write.join(0.3)
    assert write.is_alive()
    assert (tmp_path / JOURNAL).stat().st_size == size
    lock.release()
    write.join(10)
    assert notes(tmp_path)["second"] == 2


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_that_optuna_left_behind_ends(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = begin(tmp_path)
    monkeypatch.setattr(optuna_lock, "STALE_SECONDS", 0.3)
    kind(str(tmp_path / JOURNAL)).acquire()
    store.set_metadata("second", 2)
    assert "was left behind by a process that died" in caplog.text
    assert notes(tmp_path)["second"] == 2


def test_a_lock_that_points_nowhere_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Optuna leaves it that was given the journal by a relative path."""
    store = begin(tmp_path)
    monkeypatch.setattr(optuna_lock, "STALE_SECONDS", 0.3)
    (tmp_path / f"{JOURNAL}.lock").symlink_to(f"runs/one/{JOURNAL}")
    store.set_metadata("second", 2)
    assert notes(tmp_path)["second"] == 2


def test_a_lock_of_our_dead_is_removed_at_once(tmp_path: Path) -> None:
    store = begin(tmp_path)
    path = tmp_path / JOURNAL
    dead = FileLock(path.with_name(path.name + ".flock"), "it")
    dead.acquire()
    OptunaLock(path, dead).acquire()
    dead.release()  # as the kernel does
    began = time.monotonic()
    store.set_metadata("second", 2)
    assert time.monotonic() - began < 5


def test_a_lock_of_ours_on_another_machine_is_not_broken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begin(tmp_path)
    monkeypatch.setattr(optuna_lock, "STALE_SECONDS", 0.5)
    path = tmp_path / JOURNAL
    OptunaLock(path, FileLock(path.with_name(path.name + ".flock"), "it")).acquire()
    path.with_name(path.name + ".flock").write_text("17 elsewhere 0-0")
    began = time.monotonic()
    store.set_metadata("second", 2)
    assert time.monotonic() - began > 0.5


def test_optuna_waits_for_ours(tmp_path: Path) -> None:
    begin(tmp_path)
    path = tmp_path / JOURNAL
    ours = FileLock(path.with_name(path.name + ".flock"), "it")
    ours.acquire()
    lock = OptunaLock(path, ours)
    lock.acquire()
    theirs = JournalFileSymlinkLock(str(path))
    wait = threading.Thread(target=theirs.acquire)
    wait.start()
    wait.join(0.2)
    assert wait.is_alive()
    lock.release()
    wait.join(10)
    lock.release()  # theirs is not ours to give back
    assert (tmp_path / f"{JOURNAL}.lock").is_symlink()
    theirs.release()


def test_without_links_a_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begin(tmp_path)

    def refuse(self: Path, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    store.set_metadata("second", 2)
    assert not (tmp_path / f"{JOURNAL}.lock").exists()
    monkeypatch.setattr(optuna_lock, "STALE_SECONDS", 0.2)
    JournalFileOpenLock(str(tmp_path / JOURNAL)).acquire()
    store.set_metadata("third", 3)
    assert notes(tmp_path).keys() == {"first", "second", "third"}


HOLDER = """
import sys
from pathlib import Path
from nas_attn.engine.locks import FileLock
FileLock(Path(sys.argv[1]), "it").acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_stopped_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for its lock says for whom; whoever only reads does not wait."""
    store = begin(tmp_path)
    monkeypatch.setattr(locks, "SAY_SECONDS", 0.1)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / f"{JOURNAL}.flock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        write = threading.Thread(target=store.set_metadata, args=("second", 2))
        write.start()
        deadline = time.monotonic() + 20
        while "is stopped" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"process {holder.pid} on" in caplog.text
        assert f"kill -CONT {holder.pid}" in caplog.text
        assert notes(tmp_path) == {"first": 1}
        holder.kill()
        write.join(10)
    assert notes(tmp_path)["second"] == 2
