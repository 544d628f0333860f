"""Folders that fairseq-preprocess made: which languages are trained, and which data it is."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from nas_attn.benchmark.commands import _pair_flags
from nas_attn.errors import ConfigError, DataError, NasAttnError
from nas_attn.fairseq_tools import folders
from nas_attn.fairseq_tools.data import MANIFEST, PreparedData, load_prepared, point_at
from nas_attn.fairseq_tools.fine_tuning import count_updates
from nas_attn.fairseq_tools.folders import differences, identify, language_pairs, split_files
from nas_attn.study.loading import load_study
from tests.helpers.studies import write


@pytest.fixture
def plain(tmp_path: Path, tiny_translation: PreparedData) -> Path:
    """A folder of src-tgt without a manifest."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_translation.folder, folder)
    (folder / MANIFEST).unlink()
    return folder


@pytest.fixture
def several(plain: Path) -> Path:
    """A folder of two pairs: src-tgt and src-zh-CN."""
    for path in list(plain.iterdir()):
        if "src-tgt" in path.name or path.name == "dict.tgt.txt":
            shutil.copy(path, plain / path.name.replace("tgt", "zh-CN"))
    return plain


def test_the_pairs_of_a_folder(several: Path, tiny_language: PreparedData) -> None:
    (several / "train.src-None.src.idx").touch()  # what --only-source makes
    assert language_pairs(several) == [("src", "tgt"), ("src", "zh-CN")]
    assert language_pairs(tiny_language.folder) == []
    names = {path.name for path in split_files(several, ("zh-CN", "src"), "valid")}
    assert names == {f"valid.src-zh-CN.{x}.{y}" for x in ("src", "zh-CN") for y in ("idx", "bin")}


@pytest.mark.parametrize("named", ["data/languages", "data/text"])
def test_the_languages_that_a_study_names_are_trained(
    named: str, plain: Path, tmp_path: Path
) -> None:
    wanted = ["tgt", "src"]
    value = wanted if named == "data/languages" else {"folder": "text", "languages": wanted}
    study = load_study(str(write(tmp_path, plain, {named: value})), runs=tmp_path)
    command = study.jobs.confirmation(1, study.baseline, [1]).runs[0]
    for words in (command.command, command.evaluation, command.test_loss):
        assert {"--source-lang=tgt", "--target-lang=src"} <= set(words)
    assert count_updates(study.config.training, study.data_set) > 1  # fairseq reads it
    assert load_prepared(plain).languages == ("src", "tgt")


def test_a_direction_that_is_not_there(
    plain: Path, tiny_language: PreparedData, tmp_path: Path
) -> None:
    path = str(write(tmp_path, plain, {"data/languages": ["en", "de"]}))
    with pytest.raises(ConfigError, match=r"data\.folder: .*no en-de; it has src-tgt, tgt-src"):
        load_study(path)
    with pytest.raises(DataError, match="it has one language only"):
        load_prepared(tiny_language.folder, ["en", "de"])
    for path in plain.glob("valid.*.bin"):
        path.unlink()
    with pytest.raises(ConfigError, match="lacks the binarised split valid: make it with"):
        load_study(str(write(tmp_path, plain)))


@pytest.mark.parametrize("names", [["en"], ["en", "en"], ["en", "../de"], ["en", "--user-dir=x"]])
def test_names_that_are_no_languages(names: list[str], plain: Path, tmp_path: Path) -> None:
    for key, value in (("languages", names), ("text", {"folder": "text", "languages": names})):
        path = write(tmp_path, plain, {f"data/{key}": value})
        with pytest.raises(ConfigError, match=rf"data\.{key}.*(source and a target|no name of a)"):
            load_study(str(path))


def test_languages_that_the_text_has_not(tmp_path: Path) -> None:
    data = {"folder": "x", "languages": ["en", "fr"]}
    data["text"] = {"folder": "text", "languages": ["de", "en"]}
    with pytest.raises(ConfigError, match="are not those of text"):
        load_study(str(write(tmp_path, tmp_path, {"data": data})))


def test_several_pairs_need_a_name(several: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"several pairs of languages; it has src-tgt, src-zh-CN"):
        load_study(str(write(tmp_path, several)))
    path = write(tmp_path, several, {"data/languages": ["src", "zh-CN"]})
    assert load_study(str(path)).data_set.languages == ("src", "zh-CN")
    with pytest.raises(DataError, match="several pairs"):
        _pair_flags(several, [])
    flags = _pair_flags(several, ["--source-lang=zh-CN", "-t", "src", "--dropout", "0"])
    assert flags == ["--source-lang", "zh-CN", "--target-lang", "src"]


def test_a_checkpoint_reads_its_own_languages(several: Path, tiny_language: PreparedData) -> None:
    task = Namespace(_name="translation", data="", source_lang="zh-CN", target_lang="src")
    point_at(task, several)
    assert (task.data, task.source_lang, task.target_lang) == (str(several), "zh-CN", "src")
    task.source_lang = "fr"
    with pytest.raises(DataError, match="no fr-src; it has src-tgt, src-zh-CN, tgt-src, zh-CN-src"):
        point_at(task, several)
    unnamed = Namespace(_name="reported_translation", data="", source_lang=None, target_lang=None)
    with pytest.raises(DataError, match="several pairs"):
        point_at(unnamed, several)
    modelling = Namespace(_name="language_modeling", data="")
    point_at(modelling, tiny_language.folder)
    assert modelling.data == str(tiny_language.folder)
    with pytest.raises(NasAttnError, match="no data set for translation"):
        _pair_flags(tiny_language.folder, [])


def test_which_data_it_is(plain: Path, tiny_translation: PreparedData) -> None:
    languages = ("src", "tgt")
    kept = identify(tiny_translation.folder, languages)
    assert kept["files"].keys() == {
        "dict.src.txt", "dict.tgt.txt",
        *(f"{split}.src-tgt.{side}.{end}" for split in ("train", "valid", "test")
          for side in languages for end in ("bin", "idx")),
    }  # fmt: skip
    (plain / "train.src-fr.src.bin").write_bytes(b"of another pair")
    assert differences(kept, identify(plain, languages)) == []
    with (plain / "dict.tgt.txt").open("a") as dictionary:
        dictionary.write("more 1\n")
    (plain / "valid.src-tgt.src.bin").write_bytes(b"")
    for path in plain.glob("test.*"):
        path.unlink()
    found = identify(plain, ("tgt", "src"))
    assert differences(kept, found) == [
        "the languages (were src-tgt, now tgt-src)", "the dictionary dict.tgt.txt (changed)",
        "the valid split (changed)", "the test split (gone)",
    ]  # fmt: skip
    without_test = identify(plain, languages)
    shutil.copytree(tiny_translation.folder, plain, dirs_exist_ok=True)
    assert "test" not in str(differences(without_test, identify(plain, languages)))


@pytest.mark.parametrize("place", [0, 700, 1399])
def test_large_text_is_known_by_blocks(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "WHOLE_BYTES", 100)
    monkeypatch.setattr(folders, "BLOCK_BYTES", 22)  # blocks overlap, so all is read
    (tmp_path / "train.bin").write_bytes(bytes(1400))
    kept = identify(tmp_path, ())
    changed = bytearray(1400)
    changed[place] = 1
    (tmp_path / "train.bin").write_bytes(changed)
    assert differences(kept, identify(tmp_path, ())) == ["the train split (changed)"]
    (tmp_path / "train.bin").write_bytes(bytes(1401))
    assert differences(kept, identify(tmp_path, ())) == ["the train split (changed)"]
