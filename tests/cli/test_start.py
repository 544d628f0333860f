"""Commands that begin: init, show, schema."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nas_attn.cli.main import app
from nas_attn.errors import ConfigError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from nas_attn.study.shipped import shipped_folder, shipped_names
from nas_attn.yaml_file import read_yaml
from tests.helpers.cli import invoke


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of text, in the current folder."""
    folder = tmp_path / "my text"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        for ending in ("en", "de", "txt"):
            (folder / f"{split}.{ending}").write_text("some words\n")
    monkeypatch.chdir(tmp_path)
    return "my text"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "translation", "--languages", "en", "de"], {"encoder-layers": 2, "lr": 0.002}),
        (["--task", "language_modeling", "--arch", "gpt2_small"], {"criterion": "cross_entropy"}),
        (
            ["--task", "masked_lm", "--layers", "4", "--width", "512", "--heads", "8"],
            {"encoder-layers": 4, "encoder-embed-dim": 512, "encoder-attention-heads": 8},
        ),
    ],
)
def test_check_accepts_what_init_writes(
    arguments: list[str], expected: dict[str, Any], text: str
) -> None:
    said = invoke("init", "--text", text, *arguments, "--trials", "5")
    assert "written: my_text.yaml; next: nas-attn check my_text.yaml" in said
    assert "my_text: " in invoke("check", "my_text")
    config = load_study("my_text").config
    assert (config.search.strategy, config.search.trials) == ("sensitivity", 5)
    assert config.search.warm_start.source == "baseline"
    assert config.data.text is not None and config.data.text.folder == Path(text)
    assert expected.items() <= config.training.arguments.items()
    written = Path("my_text.yaml").read_text()
    assert max(map(len, written.splitlines())) <= 100
    assert written.count("#") > 15


def test_init_on_a_data_set_with_a_budget(
    tmp_path: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke(
        "init", "--task", "translation", "--data", str(tiny_translation.folder), "--budget", "2M",
        "--gpus", "0.5", "--name", "small", "--out", "other.yaml",
    )  # fmt: skip
    said = read_yaml(Path("other.yaml"))
    assert said["objectives"]["limits"] == {"total": 2_000_000}
    assert said["resources"]["gpus"] == 0.5
    assert said["name"] == "small" and "text" not in said["data"]
    assert said["training"]["arguments"]["share-all-embeddings"] is True
    assert "total: " in invoke("check", "other.yaml")


def test_init_on_dictionaries_apart(
    tmp_path: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_translation.folder, tmp_path / "apart")
    dictionary = next((tmp_path / "apart").glob("dict.*.txt"))
    dictionary.write_text(dictionary.read_text() + "another 1\n")
    monkeypatch.chdir(tmp_path)
    invoke("init", "--task", "translation", "--data", "apart")
    assert "share-all-embeddings" not in Path("apart.yaml").read_text()


@pytest.mark.parametrize("data", ["--data", "--text"])
def test_init_refuses_a_budget_that_no_model_is_within(
    data: str, text: str, tiny_translation: PreparedData
) -> None:
    """What it says is the least is accepted."""
    folder = text if data == "--text" else str(tiny_translation.folder)
    given = ["init", "--task", "translation", data, folder, "--out", "a.yaml"]
    given += ["--languages", "en", "de"] if data == "--text" else []
    with pytest.raises(UsageError, match=r"^--budget 5k: no plan .*--width or") as refused:
        invoke(*given, "--budget", "5k")
    assert not Path("a.yaml").exists()
    least = re.findall(r"the least is ([\d,]+)", str(refused.value))[0].replace(",", "")
    invoke(*given, "--budget", least)
    assert f"total: {int(least):,} to" in invoke("check", "a.yaml")


def test_init_asks_on_a_terminal(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.cli.start_commands.is_asked", lambda: True)
    done = CliRunner().invoke(app, ["init"], input=f"translate\ntranslation\n{text}\nen\nde\n")
    assert done.exit_code == 0, done.output
    assert done.output.count("Task (translation, ") == 2
    assert load_study("my_text.yaml").config.data.trained_languages == ("en", "de")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --task TASK and --text FOLDER or --data FOLDER"),
        (["--task", "translation", "--text", "my text"], "give --languages SOURCE TARGET"),
        (["--task", "masked_lm", "--text", "my text", "--out", "a.txt"], "ends in .yaml"),
        (["--task", "masked_lm", "--text", "my text", "--budget", "much"], "--budget"),
        (["--task", "masked_lm", "--text", "my text", "--out", "no/a.yaml"], "cannot be written"),
    ],
)
def test_init_refuses(arguments: list[str], message: str, text: str) -> None:
    with pytest.raises(UsageError, match=message):
        invoke("init", *arguments)
    assert list(Path().glob("*.yaml")) == []


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--text", "my text", "--heads", "3"], "training.arguments.encoder-attention-heads"),
        (["--text", "elsewhere"], "data.text.folder"),
        (["--data", "elsewhere"], "data.folder"),
        (["--text", "my text", "--name", "a\nspace: b"], "name"),
        (["--text", "my text", "--arch", "x\nspace: b"], "training.size"),
    ],
)
def test_init_writes_nothing_that_check_would_refuse(
    arguments: list[str], key: str, text: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        invoke("init", "--task", "masked_lm", *arguments, "--out", "a.yaml")
    assert key in [fault.key for fault in refused.value.faults]
    assert not Path("a.yaml").exists()


def test_init_overwrites_on_demand_alone(text: str) -> None:
    arguments = ["init", "--task", "masked_lm", "--text", text, "--out", "a.yaml"]
    Path("a.yaml").write_text("mine")
    with pytest.raises(UsageError, match="exists; name another file with --out"):
        invoke(*arguments)
    assert Path("a.yaml").read_text() == "mine"
    invoke(*arguments, "--replace")
    assert read_yaml(Path("a.yaml"))["name"] == "my_text"


def test_shipped_files_are_shown_as_they_are() -> None:
    studies, spaces = shipped_names("studies"), shipped_names("search_spaces")
    assert not {*studies} & {*spaces}, "one name would hide the other"
    assert invoke("show", "demo") == (shipped_folder("studies") / "demo.yaml").read_text()
    space = shipped_folder("search_spaces") / "per_layer.yaml"
    assert invoke("show", "per_layer") == space.read_text()
    with pytest.raises(ConfigError, match='named "per_layers"; did you mean "per_layer"'):
        invoke("show", "per_layers")


def test_schemas_are_json() -> None:
    assert json.loads(invoke("schema"))["title"] == "nas-attn study"
    assert "schemes" in json.loads(invoke("schema", "--space"))["properties"]
