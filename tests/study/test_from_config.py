"""Studies without a file: sections from Python, judged as a file is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study import Study, StudyConfig, load_study
from nas_attn.study.shipped import shipped_folder
from nas_attn.study.tree import joined, override_texts, relative_to
from nas_attn.yaml_file import read_yaml
from tests.helpers.studies import STUDY, write

HOLDS_ITSELF: dict[str, Any] = {}
HOLDS_ITSELF["data"] = HOLDS_ITSELF


def sections(data: PreparedData) -> dict[str, Any]:
    return {**copy.deepcopy(STUDY), "data": {"folder": str(data.folder)}}


def test_it_equals_what_a_file_gives(tmp_path: Path, tiny_translation: PreparedData) -> None:
    given = sections(tiny_translation)
    before = copy.deepcopy(given)
    of_file = load_study(str(write(tmp_path, tiny_translation.folder)), runs=tmp_path)
    found = Study.from_config(given, runs=tmp_path)
    assert given == before
    assert found.config == of_file.config
    assert found.settings() == of_file.settings()
    assert found.space.size == of_file.space.size
    assert found.folder == of_file.folder
    job = found.jobs.search_trial(1, found.baseline)
    assert job == of_file.jobs.search_trial(1, found.baseline)
    assert (found.typed, of_file.typed[0]) == ((), str(tmp_path / "study.yaml"))


def test_a_configuration_is_taken_too(tiny_translation: PreparedData) -> None:
    config = StudyConfig.model_validate(sections(tiny_translation))
    assert Study.from_config(config).config == config
    as_tuple = sections(tiny_translation)
    as_tuple["training"]["seeds"] = (1, 2)
    assert Study.from_config(as_tuple).config.training.seeds == [1, 2]
    changed = Study.from_config(config, overrides={"search": {"seed": 7}}).config
    assert changed == config.model_copy(
        update={"search": config.search.model_copy(update={"seed": 7})}
    )


@pytest.mark.parametrize("path", sorted(shipped_folder("studies").glob("*.yaml")), ids=str)
def test_configurations_of_shipped_studies_come_back(path: Path) -> None:
    config = StudyConfig.model_validate(read_yaml(path))
    assert StudyConfig.model_validate(config.model_dump(exclude_unset=True)) == config


def test_overrides_are_texts_or_sections(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = str(write(tmp_path, tiny_translation.folder))
    by_sections = {"search": {"trials": 5}, "training": {"arguments": {"lr": 1e-5}}}
    texts = ["search.trials=5", "training.arguments.lr=1e-05"]
    assert override_texts(by_sections, sections(tiny_translation)) == texts
    found = [
        Study.from_config(sections(tiny_translation), overrides=by_sections).config,
        Study.from_config(sections(tiny_translation), overrides=texts).config,
        load_study(path, overrides=by_sections).config,
        load_study(path, overrides=texts).config,
    ]
    assert all(config == found[0] for config in found)
    assert (found[0].search.trials, found[0].training.arguments["lr"]) == (5, 1e-5)
    assert found[0].training.arguments["max-tokens"] == 512
    commands = [load_study(path, overrides=o).typed for o in (by_sections, texts)]
    assert commands[0] == commands[1] == (path, "--set", texts[0], "--set", texts[1])


def test_a_section_takes_the_place_of_what_is_none(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    path = str(write(tmp_path, tiny_translation.folder, {"space": "grouped_query"}))
    own = {"space": {"schemes": {"multi_head": {}, "multi_query": {}}}}
    by_sections = load_study(path, overrides=own)
    assert by_sections.space.size == 8
    _, _, text = by_sections.typed
    assert load_study(path, overrides=[text]).config == by_sections.config
    assert load_study(path, overrides=text).config == by_sections.config, "one text, no list"
    nothing = write(tmp_path, tiny_translation.folder, {"search": {}})
    nothing.write_text(nothing.read_text() + "objectives:\n")
    assert (
        load_study(str(nothing), overrides=["objectives.metric=loss"]).objectives.metric == "loss"
    )


def test_overrides_are_joined() -> None:
    more = {"search": {"trials": 2}, "execution": {"workers": 1}}
    sections = {"search": {"trials": 9, "seed": 3}}
    assert joined(sections, more) == {
        "search": {"trials": 2, "seed": 3},
        "execution": {"workers": 1},
    }
    assert sections == {"search": {"trials": 9, "seed": 3}}
    assert joined(["search.seed=3"], more) == [
        "search.seed=3",
        "search.trials=2",
        "execution.workers=1",
    ]
    assert joined("search.seed=3", {}) == ["search.seed=3"]


def test_a_loaded_study_is_changed(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = str(write(tmp_path, tiny_translation.folder))
    loaded = load_study(path, runs=tmp_path)
    changed = loaded.changed({"search": {"seed": 7}}, runs=tmp_path / "other")
    again = load_study(path, overrides=["search.seed=7"], runs=tmp_path / "other")
    assert (changed.config, changed.folder) == (again.config, again.folder)
    assert changed.space.size == loaded.space.size
    given = ["execution.workers=2", "execution.storage=env:THERE", "search.trials=4"]
    assert load_study(path, overrides=given).reading == (
        path, "--set", "execution.storage=env:THERE", "--set", "search.trials=4",
    )  # fmt: skip
    assert changed.typed[-4:] == ("--set", "search.seed=7", "--runs", str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"search\.trials"):
        loaded.changed(["search.trials=0"])


def test_a_study_stays_where_it_is(
    tmp_path: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = Study.from_config(sections(tiny_translation))
    of_file = load_study(str(write(tmp_path, tiny_translation.folder)))
    monkeypatch.chdir("/")
    assert study.folder == of_file.folder == tmp_path / "runs" / "small"


def test_relative_paths_start_from_a_folder(tmp_path: Path, tiny_translation: PreparedData) -> None:
    (tmp_path / "set").symlink_to(tiny_translation.folder)
    space = {"schemes": {"multi_head": {}, "multi_query": {}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(space))
    given = sections(tiny_translation) | {"data": {"folder": Path("set")}, "space": "own.yaml"}
    study = Study.from_config(given, folder=tmp_path)
    assert study.config.data.folder == tmp_path / "set"
    assert study.space.size == 8
    with pytest.raises(ConfigError, match=r"data\.folder: folder set does not exist"):
        Study.from_config(given)


def test_other_paths_stay() -> None:
    tree = {
        "data": {"folder": "~/set", "text": {"folder": "text"}},
        "space": "grouped_query",
        "replay": {"curves": "curves.csv"},
        "search": "odd",
    }
    assert relative_to(tree, Path("/base")) == {
        "data": {"folder": "~/set", "text": {"folder": "/base/text"}},
        "space": "grouped_query",
        "replay": {"curves": "/base/curves.csv"},
        "search": "odd",
    }
    assert relative_to({"data": {"folder": "/set"}}, Path("/base")) == {"data": {"folder": "/set"}}
    assert relative_to({"data": "odd", "space": {}}, Path("/base")) == {"data": "odd", "space": {}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HOLDS_ITSELF, r"\(file\): a section that holds itself"),
        ({"name": {1, 2}}, r"\(file\): set is no word, number, list or section"),
        ({1: "name"}, r"\(file\): a key must be a word, but is '1'"),
        ({"name": "a\0b"}, r"\(file\): a word holds the character"),
        ({"name": "a", "trails": 3}, "trails: unknown key"),
        ([], r"\(file\): must be a mapping of keys"),
    ],
)
def test_what_no_file_can_hold_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Study.from_config(config)
    assert str(caught.value).startswith("(study): ")
