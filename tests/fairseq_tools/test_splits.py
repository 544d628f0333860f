"""Splits are opened before they are needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.data import PreparedData, load_prepared
from nas_attn.fairseq_tools.splits import check_split


@pytest.fixture
def copied(tiny_translation: PreparedData, tmp_path: Path) -> PreparedData:
    shutil.copytree(tiny_translation.folder, tmp_path / "data")
    return load_prepared(tmp_path / "data")


def test_a_whole_split(copied: PreparedData, tiny_language: PreparedData) -> None:
    assert check_split(copied, "test") == 61
    assert check_split(tiny_language, "valid") > 61, "nothing was left out"


def test_the_other_direction_of_a_pair(copied: PreparedData) -> None:
    languages = copied.languages[::-1]
    assert check_split(load_prepared(copied.folder, languages), "test") == 61


def test_one_pair_of_several(copied: PreparedData) -> None:
    source, target = copied.languages
    for path in list(copied.folder.glob(f"*.{source}-{target}.*")):
        name = path.name.replace(f"-{target}.", "-xx.").replace(f".{target}.", ".xx.")
        if not name.startswith("test"):
            shutil.copy(path, copied.folder / name)
    shutil.copy(copied.folder / f"dict.{target}.txt", copied.folder / "dict.xx.txt")
    assert check_split(load_prepared(copied.folder, copied.languages), "test") == 61
    with pytest.raises(DataError, match="has no test split"):
        check_split(load_prepared(copied.folder, [source, "xx"]), "test")


@pytest.mark.parametrize("ending", ["idx", "bin"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_damaged_split(copied: PreparedData, ending: str, damage: str) -> None:
    source, target = copied.languages
    path = copied.folder / f"test.{source}-{target}.{target}.{ending}"
    whole = path.read_bytes()
    path.unlink()
    texts = {"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"x" * 40}
    if damage != "missing":
        path.write_bytes(texts[damage])
    with pytest.raises(DataError, match=r"no test split|cannot be read"):
        check_split(copied, "test")


def test_sides_of_other_lengths(copied: PreparedData) -> None:
    source, target = copied.languages
    for ending in ("idx", "bin"):
        name = f"{source}-{target}.{target}.{ending}"
        shutil.copy(copied.folder / f"train.{name}", copied.folder / f"test.{name}")
    with pytest.raises(DataError, match=r"sides of the test split differ in length: .*61, .*300"):
        check_split(copied, "test")
