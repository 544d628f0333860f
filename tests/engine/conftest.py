"""A PostgreSQL server for the tests that share one."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.servers import Postgres, find_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL server (Debian: postgresql)")
    with tempfile.TemporaryDirectory(prefix="nas-attn-") as folder:
        server = Postgres(Path(folder) / "postgres")
        yield server
        server.stop()
