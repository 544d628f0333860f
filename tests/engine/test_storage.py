"""Opening storages that others open as well, or that are not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError
from tests.helpers.fakes import OBJECTIVES, begin, notes
from tests.helpers.servers import Postgres

OPENERS = 4
OPENER = """
import sys
from pathlib import Path
from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from tests.helpers.fakes import OBJECTIVES, begin, notes
print("ready", flush=True)
sys.stdin.readline()
open_storage(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_new_database_is_opened_by_several_at_once(postgres: Postgres, tmp_path: Path) -> None:
    """All of them make its tables; the database refuses all but one."""
    command = [sys.executable, "-c", OPENER, postgres.create_database("new"), str(tmp_path)]
    openers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(OPENERS)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("\n")
        opener.stdin.flush()
    for opener in openers:
        _, errors = opener.communicate(timeout=60)
        assert opener.returncode == 0, errors


@pytest.mark.parametrize("address", ["somewhere", "somewhere:", ":13000", "somewhere:port"])
def test_addresses_of_proxies(address: str, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=f"grpc://{address}: the address of a proxy is HOST:PORT"):
        open_storage(f"grpc://{address}", tmp_path)


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:1", "postgresql+psycopg://me@127.0.0.1:1/it"])
def test_nothing_answers(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.engine.storage.OPEN_SECONDS", 0.5)
    with pytest.raises(SearchError, match=f"cannot open the storage {re.escape(url)}: "):
        open_storage(url, tmp_path)


def test_storages_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    TrialStore("one", open_storage(url, tmp_path), OBJECTIVES, create=True)
    TrialStore("one", open_storage(url, tmp_path), OBJECTIVES)
    with pytest.raises(SearchError, match="holds no study 'two'"):
        TrialStore("two", open_storage(url, tmp_path), OBJECTIVES)
    with pytest.raises(SearchError, match="cannot open the storage nosuch"):
        open_storage("nosuch://x", tmp_path)


def leave_trial(folder: Path) -> None:
    (folder / "trials" / "00000").mkdir(parents=True)
    (folder / "trials" / "00000" / "plan.json").write_text("{}")


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\0" * 99_999 + b"\n"])
def test_an_emptied_journal_of_trials_is_no_new_record(content: bytes, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    open_storage(None, tmp_path)  # nothing is lost by beginning anew
    leave_trial(tmp_path)
    words = r"trials holds 1 trial, but .*journal\.log is empty: their record was lost"
    with pytest.raises(SearchError, match=words):
        open_storage(None, tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_a_journal_that_another_driver_begins_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_trial(tmp_path)
    (tmp_path / JOURNAL).touch()
    begun = begin(tmp_path / "other")

    def other_driver(seconds: float) -> None:
        (tmp_path / "other" / JOURNAL).replace(tmp_path / JOURNAL)

    monkeypatch.setattr("nas_attn.engine.storage.time.sleep", other_driver)
    assert notes(tmp_path) == {"first": 1}
    assert begun.name == "one"


def test_a_new_record_of_old_trials_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path / "new")
    assert "a new record" not in caplog.text
    leave_trial(tmp_path / "old")
    begin(tmp_path / "old")
    assert "trials holds 1 trial, but there is no journal.log: a new record" in caplog.text
    caplog.clear()
    begin(tmp_path / "old")
    assert "a new record" not in caplog.text
