"""Servers for tests, on free ports of this machine: PostgreSQL, and Optuna's proxy before one."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.storages._cached_storage import _CachedStorage

USER = "postgres"
START_SECONDS = 60.0

PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


def find_postgres() -> Path | None:
    """Folder of the server's programs, Debian's or those on the path, or None."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").is_file():
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


class _Server:
    """A process that listens on a port, and can be killed and started again."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def _start(
        self, command: list[str], log: Path, answers: Callable[[], bool], **account: str
    ) -> None:
        """Start a command until it answers; what is left of a killed one may be in its way."""
        deadline = time.monotonic() + START_SECONDS
        while self._process is None or not answers():
            if self._process is None or self._process.poll() is not None:
                with log.open("ab") as output:
                    self._process = subprocess.Popen(
                        command, stdout=output, stderr=subprocess.STDOUT, cwd="/", **account
                    )
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


class Postgres(_Server):
    """A PostgreSQL server.

    Args:
        folder: for its data; must not exist. As root it must lie in the temporary folder, since
            its parents are opened to the account that the server runs in.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        programs = find_postgres()
        assert programs is not None
        self.programs = programs
        self.folder = folder
        folder.mkdir(parents=True)
        if os.getuid() == 0:  # the server refuses to run as root
            temporary = Path(tempfile.gettempdir())
            inside = folder.relative_to(temporary)
            for parent in inside.parents[:-1]:
                path = temporary / parent
                path.chmod(path.stat().st_mode | 0o011)
            shutil.chown(folder, USER, USER)
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", USER, "--no-sync",
                  "--locale=C", "--encoding=UTF8")  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return self._url(USER)

    def create_database(self, name: str) -> str:
        """Make an empty database; returns its URL."""
        self._run("createdb", *self._address(), name)
        return self._url(name)

    def start(self) -> None:
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={self.port}"]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        for setting in settings:
            command += ["-c", setting]
        ready = [str(self.programs / "pg_isready"), "-q", *self._address()]
        log = self.folder.with_name(self.folder.name + ".log")
        self._start(command, log, lambda: subprocess.call(ready) == 0, **_account())

    def stop(self) -> None:
        """End it and its connections at once."""
        self._end(signal.SIGQUIT)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def _address(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", **_account()
        )
        assert done.returncode == 0, done.stdout + done.stderr


class GrpcProxy(_Server):
    """Optuna's gRPC storage proxy.

    Args:
        database: URL of the storage behind it.
        log: file for what it prints.
    """

    def __init__(self, database: str, log: Path) -> None:
        super().__init__()
        self.database = database
        self.log = log
        self.start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", PROXY, self.database, str(self.port)]
        self._start(command, self.log, self._listens)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


def close(storage: BaseStorage) -> None:
    """Close the connections of a storage."""
    if isinstance(storage, GrpcStorageProxy):
        storage.close()
    elif isinstance(storage, _CachedStorage):
        storage._backend.engine.dispose()


def _account() -> dict[str, Any]:
    """The account to run PostgreSQL's programs in."""
    return {"user": USER, "group": USER} if os.getuid() == 0 else {}
