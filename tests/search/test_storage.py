"""Opening storages that others open as well, or that are not there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from nas_attn.errors import SearchError
from nas_attn.search.storage import open_storage
from tests.search.servers import Postgres, close

OPENERS = 4


def test_a_new_database_is_opened_by_several_at_once(postgres: Postgres, tmp_path: Path) -> None:
    """All of them make its tables; the database refuses all but one."""
    url = postgres.create_database("new")
    together = Barrier(OPENERS)

    def open_it(_: int) -> None:
        together.wait()
        close(open_storage(url, tmp_path))

    with ThreadPoolExecutor(OPENERS) as threads:
        list(threads.map(open_it, range(OPENERS)))


@pytest.mark.parametrize("address", ["somewhere", "somewhere:", ":13000", "somewhere:port"])
def test_addresses_of_proxies(address: str, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=f"grpc://{address}: the address of a proxy is HOST:PORT"):
        open_storage(f"grpc://{address}", tmp_path)


def test_a_proxy_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.search.storage.PROXY_SECONDS", 0.5)
    with pytest.raises(SearchError, match=r"grpc://127\.0\.0\.1:1: .*timeout"):
        open_storage("grpc://127.0.0.1:1", tmp_path)
