"""What is read of a trial's folder may have been written by anyone, or half."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.errors import TrialFileError
from nas_attn.trials import runner
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.layout import (
    checkpoint_is_whole,
    fault_of_start,
    is_of_another_plan,
    read_state,
    repair_checkpoints,
)
from nas_attn.trials.runner import TrialRun
from nas_attn.validation_log import read_report
from tests.helpers.trials import finish, make_job, stand_in


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "executable_form", stand_in)


def test_a_file_larger_than_any_that_is_written(tmp_path: Path) -> None:
    for name, read in (("report.jsonl", read_report), ("finished.json", read_state)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(400_000_000)
        with pytest.raises(TrialFileError, match=f"{name} is larger than"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["report.jsonl", "finished.json", "plan.json", "train.log"])
def test_a_file_that_cannot_be_read_fails_its_trial(name: str, tmp_path: Path) -> None:
    """A folder in its place stands for a missing permission, of which root takes no notice."""
    job = make_job(tmp_path, ([3.0], "fail"))
    (tmp_path / ("" if name == "plan.json" else "seed-1") / name).mkdir(parents=True)
    result = finish(TrialRun(job))
    assert result.failure is FailureKind.UNREADABLE
    assert result.error is not None and name in result.error and "directory" in result.error


@pytest.mark.parametrize(
    "text",
    [
        '{"finished": true, "seco',
        "[]",
        "3",
        "\udcff",
        '{"finished": "yes"}',
        '{"finished": true, "seconds": NaN}',
        '{"finished": true, "seconds": -1}',
        '{"finished": true, "plan": 3}',
        '{"finished": true, "plan": {"encoder_self": {"scheme": 5}}}',
        '{"finished": true, "test": {"bleu": "3"}}',
        '{"finished": true, "test_loss": 3}',
        '{"finished": true, "decoding_seconds": 3}',
    ],
)
def test_a_damaged_state_is_made_again(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "seed-1").mkdir()
    path = tmp_path / "seed-1" / "finished.json"
    path.write_text(text, errors="surrogateescape")
    assert read_state(path.parent) == {}
    assert f"{path} is damaged, so nothing of it is believed: " in caplog.text
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"))))
    assert result.losses == (3.0,) and result.error is None
    assert read_state(path.parent)["finished"] is True


def test_what_another_version_adds_to_a_state_stays(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "finished.json").write_text('{"seconds": 5, "later": [1]}')
    assert finish(TrialRun(make_job(tmp_path, ([3.0], "end")))).seconds > 5
    assert read_state(tmp_path / "seed-1")["later"] == [1]


def test_a_folder_of_another_plan_is_not_taken_over(tmp_path: Path) -> None:
    """As where a record is new and the run folder is not."""
    old, new = ({"encoder_self": {"scheme": scheme}} for scheme in ("multi_query", "single_head"))
    assert finish(TrialRun(make_job(tmp_path, ([1.0], "end"), plan=old))).losses == (1.0,)
    result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"), plan=new)))
    assert result.failure is FailureKind.DAMAGED
    assert result.error is not None and "they belong to another record" in result.error
    assert not is_of_another_plan(tmp_path, old)
    (tmp_path / "plan.json").write_text('{"encoder_self": [')
    assert not is_of_another_plan(tmp_path, new), "nothing is known"
    (tmp_path / "plan.json").write_text("3")
    assert is_of_another_plan(tmp_path, new)


def test_a_checkpoint_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a shared folder says nothing about the file."""
    folder = tmp_path / "seed-1" / "checkpoints"
    folder.mkdir(parents=True)
    last = folder / "checkpoint_last.pt"
    torch.save({"weights": torch.ones(100)}, last)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", fail)
        result = finish(TrialRun(make_job(tmp_path, ([3.0], "end"))))
    assert result.failure is FailureKind.UNREADABLE and result.failure.can_retry
    assert checkpoint_is_whole(last)


@pytest.mark.parametrize("place", [30, 64, 200, 400, -60, -30, -10])
def test_damaged_checkpoints(place: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"weights": torch.ones(100)}, path)
    assert fault_of_start(path) is None
    data = bytearray(path.read_bytes())
    data[place : place + 9 if place > 0 else None] = b"\xff" * len(data[place:][:9])
    path.write_bytes(data)
    assert checkpoint_is_whole(path) in (True, False), "never an error"


def test_what_trials_start_from(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert fault_of_start(path) == "is gone"
    path.mkdir()
    assert fault_of_start(path) == "is no file"
    path.rmdir()
    for content in (b"", b"nonsense", b"PK\3\4"):
        path.write_bytes(content)
        assert fault_of_start(path) == "is damaged"
    torch.save({"weights": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert fault_of_start(path) is None, "as torch wrote them of old"


def test_cut_off_checkpoints_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    best, last = folder / "checkpoint_best.pt", folder / "checkpoint_last.pt"
    torch.save({"weights": torch.ones(1000)}, best)
    last.write_bytes(best.read_bytes()[:-200])
    assert checkpoint_is_whole(best)
    assert not checkpoint_is_whole(last)
    repair_checkpoints(folder)
    assert last.read_bytes() == best.read_bytes()
    best.write_bytes(b"")
    last.write_bytes(b"nonsense")
    repair_checkpoints(folder)
    assert not list(folder.iterdir())
