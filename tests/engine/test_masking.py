"""Passwords of storages: nowhere but where the user put them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas_attn import masking
from nas_attn.cli import main as cli
from nas_attn.engine.storage import open_storage
from nas_attn.errors import SearchError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.masking import (
    MaskingFilter,
    environment_without_secrets,
    hide_typed,
    mask,
    remember,
    replace_typed,
    resolve_storage,
    without_secrets,
)
from nas_attn.study.loading import load_study
from nas_attn.trials.processes.launch import ColdLauncher
from tests.helpers.servers import Postgres
from tests.helpers.studies import write

SECRET = "Gr8heim%21t-wort"
PLAIN = "Gr8heim!t-wort"
URL = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/it"
COMMAND = [sys.executable, "-W", "ignore", "-m", "nas_attn.cli.main"]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_known", set())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"cannot open {URL}: no", "cannot open postgresql+psycopg://me:***@127.0.0.1:1/it: no"),
        ("mysql://me:p@ss@host/db", "mysql://me:***@host/db"),
        ("a://u:x@h and b://v:yz@i", "a://u:***@h and b://v:***@i"),
        ("mysql://host/db?user=me&password=x&a=1", "mysql://host/db?user=me&password=***&a=1"),
        ("host=h password='x' port=1", "host=h password='***' port=1"),
        ("PGPASSWORD=x", "PGPASSWORD=***"),
        ("grpc://host:13000", "grpc://host:13000"),
        ("http://host:80/it, see me@there", "http://host:80/it, see me@there"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("tcp://127.0.0.1:5 and 5@3", "tcp://127.0.0.1:5 and 5@3"),
    ],
)
def test_urls_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "url",
    [URL, f"postgresql://h/d?user=me&password={SECRET}", f"postgresql://me:xxxx@{SECRET}@h/d"],
)
def test_what_drivers_repeat_is_masked(url: str) -> None:
    remember(url)
    text = mask(f"no host {SECRET}@127.0.0.1, tried {PLAIN!r} and {SECRET!r}")
    assert SECRET not in text
    assert PLAIN not in text


@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"postgresql+psycopg://127.0.0.1:1/it?user=me&password={SECRET}",
        f"postgresql+nodriver://me:{SECRET}@host/it",
        f"nodialect://me:{SECRET}@host/it",
        f"postgresql+psycopg://me:{SECRET}@ host:port/it",
        f"postgresql+psycopg://me:x@{SECRET}@127.0.0.1:1/it",
        f"sqlite:////tmp/nowhere/it.db?password={SECRET}",
        f"grpc://me:{SECRET}@host",
        f"://me:{SECRET}@host",
    ],
)
def test_errors_on_opening(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nas_attn.engine.storage.OPEN_SECONDS", 0.2)
    with pytest.raises(SearchError, match="cannot open the storage") as raised:
        open_storage(url, tmp_path)
    masking.mask_tracebacks()
    sys.excepthook(raised.type, raised.value, raised.tb)
    printed = str(raised.value) + capsys.readouterr().err
    assert "Traceback" in printed
    assert SECRET not in printed
    assert PLAIN not in printed
    assert raised.value.__suppress_context__


def test_a_variable_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_STORE", URL)
    assert resolve_storage("env:MY_STORE") == URL
    assert mask(f"it is {PLAIN}") == "it is ***"
    assert "MY_STORE" not in without_secrets(os.environ)
    monkeypatch.setattr("nas_attn.engine.storage.OPEN_SECONDS", 0.2)
    with pytest.raises(SearchError, match=r"open the storage postgresql\+psycopg://me:\*\*\*@127"):
        open_storage("env:MY_STORE", tmp_path)
    with pytest.raises(UsageError, match="there is no environment variable MY_OTHER"):
        open_storage("env:MY_OTHER", tmp_path)


def test_logs_and_their_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("nas_attn.test")
    caplog.handler.addFilter(MaskingFilter())
    try:
        try:
            raise ValueError(URL)
        except ValueError:
            logger.exception("cannot open %s", URL)
    finally:
        caplog.handler.removeFilter(caplog.handler.filters[-1])
    assert "cannot open postgresql+psycopg://me:***@" in caplog.text
    assert "ValueError: postgresql" in caplog.text
    assert SECRET not in caplog.text


def test_trainings_do_not_know_the_storage(tmp_path: Path) -> None:
    secret = {"NAS_ATTN_STORAGE": URL, "NAS_ATTN_STORAGE_2": URL, "PGPASSWORD": PLAIN}
    environment = {**os.environ, **secret, "NAS_ATTN_REPORT": "kept"}
    log = tmp_path / "log"
    launcher = ColdLauncher()
    running = launcher.start(
        [sys.executable, "-c", "import os; print(dict(os.environ))"],
        environment=environment,
        log=log,
        keep_open=0,
    )
    assert running.wait(60) == 0
    assert "'NAS_ATTN_REPORT': 'kept'" in log.read_text()
    assert "STORAGE" not in log.read_text()
    assert PLAIN not in log.read_text()


def test_ray_does_not_know_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_ATTN_STORAGE", URL)
    with environment_without_secrets():
        assert "NAS_ATTN_STORAGE" not in os.environ
    assert os.environ["NAS_ATTN_STORAGE"] == URL


@pytest.mark.parametrize(
    ("typed", "moved"),
    [
        (["--storage", URL], ["--storage", "env:NAS_ATTN_STORAGE"]),
        ([f"--storage={URL}"], ["--storage=env:NAS_ATTN_STORAGE"]),
        (["--set", f"execution.storage={URL}"],
         ["--set", "execution.storage=env:NAS_ATTN_STORAGE"]),
        ([f"--set=execution.storage={URL}"], ["--set=execution.storage=env:NAS_ATTN_STORAGE"]),
        (["--storage", "mysql://h/d?password=x"], ["--storage", "env:NAS_ATTN_STORAGE"]),
    ],
)  # fmt: skip
def test_a_typed_password_leaves_the_command_line(typed: list[str], moved: list[str]) -> None:
    variables = hide_typed(["nas-attn", *typed], {})
    assert list(variables) == ["NAS_ATTN_STORAGE"]
    assert replace_typed(typed, variables) == moved
    other = hide_typed(typed, {"NAS_ATTN_STORAGE": "another"})
    assert list(other) == ["NAS_ATTN_STORAGE_2"]


def test_what_holds_no_password_stays_typed() -> None:
    words = ["search", "s.yaml", "--storage", "postgresql://me@h/d", "--set", "a=grpc://h:1"]
    assert hide_typed(words, {}) == {}
    assert replace_typed(words, {}) == words


def test_the_command_starts_again_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Started(Exception):
        pass

    def execve(program: str, words: list[str], environment: dict[str, str]) -> None:
        raise Started(program, words, environment)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["nas-attn", "search", "s.yaml", "--storage", URL])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "nas_attn.cli.main", *sys.argv[1:]])
    with pytest.raises(Started) as started:
        cli.main()
    program, words, environment = started.value.args
    assert program == sys.executable
    assert words[1:] == [
        "-m", "nas_attn.cli.main", "search", "s.yaml", "--storage", "env:NAS_ATTN_STORAGE"
    ]  # fmt: skip
    assert environment["NAS_ATTN_STORAGE"] == URL
    said = capsys.readouterr().err
    assert "a password on a command line can be read by everybody" in " ".join(said.split())
    assert SECRET not in said


def test_the_report_names_no_password(tmp_path: Path, tiny_translation: PreparedData) -> None:
    study = write(tmp_path, tiny_translation.folder)
    loaded = load_study(str(study), overrides=[f"execution.storage={URL}"])
    assert SECRET not in " ".join(loaded.typed)
    assert "me:***@127.0.0.1" in " ".join(loaded.typed)


def test_no_byte_of_a_search_holds_the_password(
    postgres: Postgres, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """Neither its run folder nor what it prints, nor its command line while it runs."""
    url = postgres.create_database("secret").replace("postgres@", f"postgres:{SECRET}@")
    changes = {
        "search": {"trials": 2, "startup_trials": 1},
        "replay": {"seconds": 0.5},
        "execution": {"workers": 1},
    }
    study = write(tmp_path, tiny_translation.folder, changes)
    runs = tmp_path / "runs"
    log = tmp_path / "log"
    command = [*COMMAND, "search", str(study), "--runs", str(runs), "--storage", url]
    with log.open("wb") as output:
        search = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        seen, trained = [], False
        deadline = time.monotonic() + 120
        while search.poll() is None and time.monotonic() < deadline:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        words = (entry / "cmdline").read_bytes()
                        if b"env:NAS_ATTN_STORAGE" in words:
                            seen.append(words)
                        elif b"nas_attn.simulation.command" in words:
                            trained = True
                            assert SECRET.encode() not in (entry / "environ").read_bytes()
                    except OSError:
                        continue
            time.sleep(0.05)
    assert search.wait() == 0, log.read_text()
    assert seen
    assert trained
    assert "report:" in log.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert PLAIN.encode() not in content, path
