"""What a binarised fairseq data set holds: its pairs of languages, its files, and which data it is.

A data set is known by its content, not by its path: two folders with the same dictionaries and the
same binarised splits are the same data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_attn.errors import DataError

SPLITS = ("train", "valid", "test")
WHOLE_BYTES = 32 * 2**20
"""A file of binarised text up to this size is read whole; of a larger one, blocks are read."""
BLOCKS, BLOCK_BYTES = 64, 2**19


def language_pairs(folder: Path) -> list[tuple[str, str]]:
    """The pairs of languages in a folder, as fairseq-preprocess named the training sets.

    Either direction of a pair can be trained. Names of languages may hold hyphens, as in zh-CN.
    """
    sides: dict[str, set[str]] = {}
    for path in folder.glob("train.*.*.idx"):
        name = path.name.removeprefix("train.").removesuffix(".idx")
        pair, _, language = name.rpartition(".")
        sides.setdefault(pair, set()).add(language)
    return sorted(
        (source, target)
        for pair, languages in sides.items()
        for source in languages
        for target in languages
        if source != target and pair == f"{source}-{target}"
    )


def choose_languages(
    folder: Path, wanted: Sequence[str], kept: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Which languages of a data set are trained, source first; none for language modelling.

    Args:
        folder: Folder of the data set.
        wanted: Source and target; empty for those that the data set has.
        kept: Languages that the data set's manifest says; None if it has none.

    Raises:
        DataError: the folder does not hold the languages that are wanted, or it holds several
            pairs and none is named, or it holds no data set.
    """
    if kept is not None and not wanted:
        return tuple(kept)
    pairs = language_pairs(folder)
    if wanted:
        if {tuple(wanted), tuple(reversed(wanted))} & set(pairs):
            return tuple(wanted)
        raise DataError(f"data set {folder} has no {'-'.join(wanted)}; {_offer(folder, pairs)}")
    if len(pairs) > 1:
        raise DataError(
            f"data set {folder} holds several pairs of languages; {_offer(folder, pairs)}: name "
            f"source and target with data.languages, such as [{', '.join(pairs[0])}]"
        )
    if pairs:
        return pairs[0]
    if (folder / "train.idx").is_file():
        return ()
    raise DataError(f"folder {folder} holds no binarised fairseq data set")


def _offer(folder: Path, pairs: Sequence[tuple[str, str]]) -> str:
    if pairs:
        ways = sorted({f"{a}-{b}" for a, b in pairs} | {f"{b}-{a}" for a, b in pairs})
        return f"it has {', '.join(ways)}"
    if (folder / "train.idx").is_file():
        return "it has one language only"
    return "it holds no binarised pair of languages"


def languages_of(task: Any) -> tuple[str, ...]:
    """Source and target that a checkpoint's task names; none if it leaves that to the data set.

    Args:
        task: Configuration of the task, in any of the forms in which fairseq keeps one.
    """
    fields = task if isinstance(task, Mapping) else vars(task)
    found = fields.get("source_lang"), fields.get("target_lang")
    return (str(found[0]), str(found[1])) if all(found) else ()


def split_files(folder: Path, languages: Sequence[str], split: str) -> list[Path]:
    """The binarised files of one split, sorted by name; those of further pairs are left out.

    Args:
        folder: Folder of the data set.
        languages: Source and target, or none for language modelling.
        split: Name of the split: train, valid or test; its further parts (valid1) count as well.
    """
    ways = [""]
    if languages:
        source, target = languages
        # fairseq reads the files of the other direction where there are none of this one.
        ways = [
            rf"\.{re.escape(a)}-{re.escape(b)}\.({re.escape(a)}|{re.escape(b)})"
            for a, b in ((source, target), (target, source))
        ]
    files = sorted(path for path in folder.glob(f"{split}*") if path.is_file())
    for way in ways:
        pattern = re.compile(rf"{split}\d*{way}\.(idx|bin)")
        found = [path for path in files if pattern.fullmatch(path.name)]
        if found:
            return found
    return []


def missing_splits(folder: Path, languages: Sequence[str]) -> list[str]:
    """Which of the splits that every training reads are not there, or not whole."""
    wanted = 2 * max(1, len(languages))
    return [s for s in ("train", "valid") if len(split_files(folder, languages, s)) < wanted]


def identify(folder: Path, languages: Sequence[str]) -> dict[str, Any]:
    """Which data these are, to be kept in a record and compared with `differences`.

    sha256 of every file that a training or an evaluation reads: dictionaries and indices whole,
    binarised text whole up to `WHOLE_BYTES`, else its size and `BLOCKS` blocks of `BLOCK_BYTES`
    spread evenly from the first byte to the last.

    Args:
        folder: Folder of the data set.
        languages: Languages that are trained, source first.

    Returns:
        Languages, and the digest of each file by its name.
    """
    names = [f"dict.{language}.txt" for language in languages] or ["dict.txt"]
    files = [folder / name for name in names]
    for split in SPLITS:
        files += split_files(folder, languages, split)
    return {
        "languages": list(languages),
        "files": {path.name: _file_digest(path) for path in files if path.is_file()},
    }


def differences(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In which parts a data set is not the one that was kept, in words; empty if it is the same.

    A side that was not there before, such as a test set made later, is no difference.
    """
    words = []
    if kept["languages"] != found["languages"]:
        before, now = ("-".join(what["languages"]) or "none" for what in (kept, found))
        words.append(f"the languages (were {before}, now {now})")
    parts: dict[str, bool] = {}
    for name, digest in kept["files"].items():
        is_gone = name not in found["files"]
        if is_gone or digest != found["files"][name]:
            split = re.match(r"[a-z]+", name)
            is_text = split is not None and split[0] in SPLITS
            part = f"the {split[0]} split" if split and is_text else f"the dictionary {name}"
            parts[part] = parts.get(part, True) and is_gone
    return words + [f"{part} ({'gone' if gone else 'changed'})" for part, gone in parts.items()]


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES or path.suffix != ".bin":
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for index in range(BLOCKS):
            file.seek(index * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
        return digest.hexdigest()
