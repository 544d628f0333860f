"""A study goes on with the data that it began with, and with no others."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas_attn.cli.main import app
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import COMMANDS, NewTrial
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.same_data import DATA, keep_data
from tests.helpers.studies import write

OBJECTIVES = Objectives(metric="loss", maximise=False, costs=("total",), limits={})


def test_data_made_again_under_the_same_path_are_refused(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_translation.folder, data)
    replayed = {"replay": {"seconds": 0.1}, "execution": {"executor": "simulated"}}
    apart = {"training/arguments/share-all-embeddings": False}  # a dictionary changes alone
    path = str(write(tmp_path, data, {**replayed, **apart, "search/trials": 2}))

    def run(command: str) -> str:
        where = ("--runs", str(tmp_path / "runs"))
        return CliRunner().invoke(app, [command, path, *where], catch_exceptions=False).output

    assert "report:" in run("search")
    shutil.rmtree(data)
    shutil.copytree(tiny_translation.folder, data)
    assert "report:" in run("search")  # the same data, put there again
    valid = data / "valid.src-tgt.tgt.bin"
    valid.write_bytes(valid.read_bytes()[::-1])
    (data / "dict.src.txt").write_text("other 1\n")
    with pytest.raises(UsageError) as caught:
        run("search")
    for words in (
        "the dictionary dict.src.txt (changed), the valid split (changed)",
        "Restore the data",
        "another name",
    ):
        assert words in str(caught.value)
    assert "2 of 2" in run("status")
    assert "report:" in run("report")


def store_in(folder: Path) -> TrialStore:
    folder.mkdir(exist_ok=True)
    return TrialStore("s", open_storage(None, folder), OBJECTIVES, create=True)


def test_a_record_of_old_takes_the_data_on(
    tmp_path: Path, tiny_translation: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path / "run")
    command = ["fairseq-train", "DATA", "--source-lang", "src", "--target-lang", "tgt"]
    store.create(NewTrial(attributes={COMMANDS: [command]}))
    reverse = PreparedData(folder=tiny_translation.folder, languages=("tgt", "src"))
    with pytest.raises(NasAttnError, match=r"the languages \(were src-tgt, now tgt-src\)"):
        keep_data(store, reverse)
    assert DATA not in store.metadata()
    with caplog.at_level(logging.INFO):
        keep_data(store, tiny_translation)
    assert "did not say which data" in caplog.text
    with pytest.raises(NasAttnError, match="the languages"):
        keep_data(store_in(tmp_path / "run"), reverse)


def test_a_new_record_says_nothing(
    tmp_path: Path, tiny_translation: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        keep_data(store_in(tmp_path / "run"), tiny_translation)
    assert caplog.text == ""
