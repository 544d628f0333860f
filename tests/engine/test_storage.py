"""Opening storages that others open as well, or that are not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.servers import Postgres

OPENERS = 4
OPENER = """
import sys
from pathlib import Path
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from tests.helpers.fakes import OBJECTIVES
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
