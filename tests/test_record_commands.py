"""What commands say and do where the record is damaged, or was made with other settings."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_attn.cli import main as cli
from nas_attn.engine.storage import JOURNAL
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.studies import write

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs a command in this process; returns its exit status and all that it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nas-attn", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData
) -> tuple[Path, Path]:
    """A study whose search is over, replayed in virtual time, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("searched")
    changes = {
        "execution": {"executor": "simulated", "workers": 1},
        "replay": {"seconds": 0.5},
        "search": {"trials": 4, "startup_trials": 2, "seed": 1},
    }
    study = write(folder, tiny_translation.folder, changes)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["nas-attn", "search", str(study), f"--runs={folder / 'runs'}"])
        cli.main()
    assert not ended.value.code
    return study, folder / "runs"


@pytest.fixture
def study(searched: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """Arguments of commands on a copy of the searched study."""
    shutil.copytree(searched[1], tmp_path / "runs")
    shutil.copy(searched[0], tmp_path / "study.yaml")
    return [str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]


def test_a_damaged_record_is_said_and_repaired(study: list[str], say: Say) -> None:
    path = Path(study[2]) / "small" / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:7], b"\0" * 50 + b"\n", *lines[7:]]))
    for command in ("status", "report", "search", "confirm", "proposals"):
        status, text = say(command, *study)
        assert status == 1
        assert f"nas-attn: line 8 of {path} cannot be read: it holds NUL bytes" in text
        assert "nas-attn repair STUDY" in text
    status, text = say("compare", str(path.parent), str(path.parent))
    assert status == 1
    assert "line 8 of" in text
    status, text = say("repair", *study)
    assert status == 0
    assert "1 are dropped" in text
    assert "line 8: it holds NUL bytes" in text
    assert path.read_bytes() == b"".join(lines)
    assert "4 of 4" in say("status", *study)[1]
    assert "nothing to repair" in say("repair", *study)[1]


def test_a_damaged_end_stops_nobody(study: list[str], say: Say) -> None:
    path = Path(study[2]) / "small" / JOURNAL
    with path.open("ab") as file:
        file.write(b"\0" * 200 + b"\n")
    assert say("status", *study)[0] == 0
    assert say("search", *study, "--trials", "5")[0] == 0
    assert "5 of 5" in say("status", *study)[1]


def test_a_record_that_is_none(study: list[str], say: Say) -> None:
    path = Path(study[2]) / "small" / JOURNAL
    path.write_text("dear diary\nit was a dark night\n")
    for command in ("status", "report", "search", "repair"):
        status, text = say(command, *study)
        assert status == 1
        assert "is no journal of a search" in text
    assert path.read_text().startswith("dear diary")


def test_what_is_not_repaired(study: list[str], say: Say) -> None:
    url = "execution.storage=postgresql+psycopg://me@127.0.0.1:1/it"
    assert say("repair", *study, "--set", url)[0] == 2
    (Path(study[2]) / "small" / JOURNAL).unlink()
    assert "no search has run" in say("repair", *study)[1]


def test_what_proposals_hang_on_is_refused_at_start(study: list[str], say: Say) -> None:
    for command in (["search"], ["proposals", "--check"]):
        status, text = say(*command, *study, "--set", "search.seed=2")
        assert status == 1
        assert "search.seed (1, now 2)" in text
        assert "give the study another name" in text
    assert say("search", *study, "--trials", "5", "--workers", "2")[0] == 0
    assert say("proposals", *study, "--check")[0] == 0


def test_commands_after_a_repair_that_lost_a_trial(study: list[str], say: Say) -> None:
    path = Path(study[2]) / "small" / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    creations = [index for index, line in enumerate(lines) if line.startswith(b'{"op_code":4')]
    lines[creations[2]] = lines[creations[2]][:100] + b"\xff" + lines[creations[2]][101:]
    path.write_bytes(b"".join(lines))
    status, text = say("repair", *study)
    assert status == 0
    assert "trial 2 of small was lost" in text
    assert "3 of 4" in say("status", *study)[1]
    for command in ("report", "search", "report", "proposals"):
        status, text = say(command, *study)
        assert status == 0, text
    assert "4 of 4" in say("status", *study)[1]


def test_passwords_in_what_is_refused(study: list[str], say: Say) -> None:
    """Also where a key is mistyped, and the value with it is shown."""
    url = "postgresql+psycopg://me:Gr8heimwort@127.0.0.1:port/it"
    for word in (f"execution.storge={url}", f"execution.storage=[{url}]", url, f"name={url}"):
        status, text = say("status", *study, "--set", word)
        assert status in (1, 2), word
        assert "Gr8heimwort" not in text
    status, text = say("search", *study, "--set", "execution.storage=env:NAS_ATTN_NONE")
    assert status == 2
    assert "there is no environment variable NAS_ATTN_NONE" in text
