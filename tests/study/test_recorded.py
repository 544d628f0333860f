"""A study is found by file, name or run folder, and needs no file once it was searched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import nas_attn.api as nas_attn
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.form import find_study
from nas_attn.study.loading import load_study
from nas_attn.study.recorded import STUDY, keep_study_file, open_run_folder, recorded_tree
from nas_attn.study.shipped import shipped_folder
from tests.helpers.cli import invoke
from tests.helpers.fakes import FakeExecutor, make_loop
from tests.helpers.paths import ROOT
from tests.helpers.studies import write

RECORDED = ROOT / "tests" / "fixtures" / "recorded_study"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Path:
    """A folder with a study, whose space is a file, and the run folder of its replayed search."""
    folder = tmp_path_factory.mktemp("searched")
    space = folder / "some_space.yaml"
    space.write_text(yaml.safe_dump({"schemes": {"multi_head": {}, "multi_query": {}}}))
    changes: dict[str, Any] = {
        "replay": {"validations": 2, "seconds": 0.0},
        "space": str(space),
        "execution": {"executor": "simulated"},
        "search/sampler": "random",
    }
    path = write(folder, tiny_translation.folder, changes)
    nas_attn.search(path, runs=folder / "runs", trials=4)
    space.unlink()
    path.rename(folder / "small.yaml")
    return folder


def test_files_come_before_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mine", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "journal.log").write_text("")
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "demo.yaml").write_text("")
    assert find_study("mine.yaml") == Path("mine.yaml")
    assert find_study("mine") == Path("mine.yaml")
    assert find_study("other") == find_study("runs/other") == Path("runs/other")
    assert find_study("demo") == shipped_folder("studies") / "demo.yaml"
    assert find_study(Path("runs/demo")) == Path("runs/demo")
    assert find_study("other", tmp_path / "runs") == tmp_path / "runs" / "other"


@pytest.mark.parametrize(
    ("name", "meant"), [("dmeo", "demo"), ("min.yaml", "mine.yaml"), ("othre", "other")]
)
def test_a_mistyped_name_is_answered_by_a_question(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "journal.log").write_text("")
    (tmp_path / "mine.yaml").write_text("")
    message = f'no study file or shipped study named "{name}"; did you mean "{meant}"\\?'
    with pytest.raises(ConfigError, match=message):
        find_study(name)
    with pytest.raises(ConfigError, match=r"there are demo, iwslt14"):
        find_study("xxxxxxxx")


def test_a_run_folder_alone_does_for_every_look(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(searched / "runs" / "small", folder)
    before = nas_attn.open_study("small", runs=searched / "runs")
    assert "4 of 4 finished" in invoke("status", str(folder))
    assert f"report: {tmp_path / 'out'}" in invoke(
        "report", "renamed", "--runs", str(tmp_path), "--out", str(tmp_path / "out")
    )
    assert "4 proposals, all as on record" in invoke("proposals", str(folder), "--check")
    assert "8 plans; 4 trials" in invoke("check", str(folder))
    opened = nas_attn.open_study(folder)
    assert opened.trials()["loss"].tolist() == before.trials()["loss"].tolist()
    assert opened.study.folder == folder
    assert opened.study.execution.executor == "simulated"
    with pytest.raises(UsageError, match="replayed learning curves leave no model"):
        opened.export(tmp_path / "model", trial=0)


def test_a_run_folder_is_searched_on_and_confirmed(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(searched / "runs" / "small", folder)
    results = nas_attn.search(folder, trials=6)
    assert results.folder == folder and len(results.trials()) == 6
    assert not (tmp_path / "small").exists()
    assert len(nas_attn.open_study(folder).confirm(seeds=2)) >= 2


def test_values_of_a_recorded_study_can_be_replaced(searched: Path) -> None:
    folder = searched / "runs" / "small"
    changed = load_study(folder, overrides=["execution.workers=3"])
    assert changed.execution.workers == 3 and changed.folder == folder
    assert load_study(folder, overrides=["name=other"]).folder == folder.parent / "other"


def test_the_record_holds_no_password(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = write(tmp_path, tiny_translation.folder, {"replay": {"seconds": 0.0}})
    storage = {"storage": "postgresql://me:secret@host/database", "workers": 3}
    study = load_study(path, overrides={"execution": storage})
    store = make_loop(tmp_path / "fake", trials=2).store
    keep_study_file(store, study.config)
    said = store.metadata()[STUDY]
    assert said["execution"] == {"workers": 3}
    assert "secret" not in json.dumps(store.metadata())


def test_a_record_of_an_earlier_version_holds_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RECORDED / "data_set", tmp_path / "data")
    shutil.copytree(RECORDED / "run_folder", tmp_path / "runs" / "recorded")
    results = nas_attn.open_study("recorded")
    recorded = results.store.settings()
    assert {**results.study.settings(), **recorded} == results.study.settings()
    assert "7 proposals, all as on record" in invoke("proposals", "recorded", "--check")


def test_a_record_without_settings_says_so(tmp_path: Path) -> None:
    loop = make_loop(tmp_path / "fake", trials=2)
    FakeExecutor().run(loop)
    loop.store.set_metadata("settings", {"objectives": {"loss": "loss", "costs": ["total"]}})
    with pytest.raises(UsageError, match="holds no settings: name its study file"):
        recorded_tree(open_run_folder(tmp_path / "fake"))
    with pytest.raises(NasAttnError, match="is no run folder of a search"):
        load_study(str(tmp_path))
