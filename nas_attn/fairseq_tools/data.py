"""Text in, binarised fairseq data set out, with a SentencePiece model of the training set."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.folders import SPLITS, choose_languages, languages_of
from nas_attn.fairseq_tools.pieces import Corpus, encode, remarks_on, train_pieces
from nas_attn.literals import Subword

logger = logging.getLogger(__name__)

MANIFEST = "prepared.json"
SENTENCEPIECE_MODEL = "sentencepiece.model"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A binarised data set.

    Args:
        folder: Folder that fairseq commands take as data.
        languages: Source and target language, or none for language modelling.
    """

    folder: Path
    languages: tuple[str, ...]

    @property
    def sentencepiece_model(self) -> Path:
        return self.folder / SENTENCEPIECE_MODEL


def find_split_files(folder: Path, languages: Sequence[str]) -> dict[str, list[Path]]:
    """Find `train.LANGUAGE`, `valid.LANGUAGE` and `test.LANGUAGE`, plain or gzipped.

    Args:
        folder: Folder of the text.
        languages: One or two file name endings; `txt` for language modelling.

    Returns:
        For each split, one file a language.

    Raises:
        DataError: names the files that are missing.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist")
    found: dict[str, list[Path]] = {}
    missing = []
    for split in SPLITS:
        found[split] = []
        for language in languages:
            present = _files_of(folder, split, [language])
            found[split] += present[:1]
            missing += [] if present else [f"{split}.{language}"]
    if missing:
        raise DataError(f"folder {folder} lacks {', '.join(missing)} (plain or .gz)")
    return found


def _files_of(folder: Path, split: str, endings: Sequence[str]) -> list[Path]:
    names = [f"{split}.{ending}{gz}" for ending in endings for gz in ("", ".gz")]
    return [folder / name for name in names if (folder / name).is_file()]


def read_lines(path: Path) -> list[str]:
    """Read a UTF-8 text file, plain or gzipped, splitting at line feeds only.

    A mark at its beginning and carriage returns before line feeds are no text.

    Raises:
        DataError: the file is missing, empty or not UTF-8 text.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"cannot read {path}: line {line} is not UTF-8 text: {error}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"cannot read {path}: line {line} holds a NUL character, which no text has")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def splits_beside(paths: Sequence[Path], endings: Sequence[str]) -> dict[str, list[Path]] | None:
    """The files of all splits that lie beside training files; None if there are no such files.

    Args:
        paths: Training files, one a language.
        endings: Endings of their names.

    Raises:
        DataError: some of the validation and test files are there and others are not.
    """
    folder = paths[0].parent
    is_train = [
        path.name in (f"train.{e}", f"train.{e}.gz") for path, e in zip(paths, endings, strict=True)
    ]
    if not all(is_train) or any(path.parent != folder for path in paths):
        return None
    given = [name for split in SPLITS[1:] for name in _files_of(folder, split, endings)]
    if not given:
        return None
    try:
        found = find_split_files(folder, endings)
    except DataError as error:
        raise DataError(
            f"{error}, but holds {', '.join(path.name for path in given)}: add what is missing, "
            "or move away what is there, and lines of the training text are held out instead"
        ) from None
    return {**found, "train": list(paths)}


def read_corpus(files: Mapping[str, Sequence[Path]]) -> dict[str, list[list[str]]]:
    """Read the files of every split and check that languages are aligned.

    Raises:
        DataError: a file is unreadable, or two sides have different numbers of lines.
    """
    corpus: dict[str, list[list[str]]] = {}
    for split, paths in files.items():
        corpus[split] = [read_lines(path) for path in paths]
        counts = {path.name: len(side) for path, side in zip(paths, corpus[split], strict=True)}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"{split}: the sides have different numbers of lines: {listed}")
    return corpus


def hold_out(lines: Sequence[Sequence[str]], valid: int, test: int) -> dict[str, list[list[str]]]:
    """Split aligned text by position: evenly spaced lines become validation and test.

    Args:
        lines: Lines of one side, or of two aligned ones.
        valid: Number of validation lines.
        test: Number of test lines.

    Raises:
        DataError: fewer than half of the lines would be left to train on.
    """
    total = len(lines[0])
    held = valid + test
    if valid < 1 or test < 1 or held * 2 > total:
        raise DataError(
            f"cannot hold out {valid} and {test} of {total} lines: at least one of each, and at "
            "most half of all (--valid-lines and --test-lines)"
        )
    positions = [index * total // held for index in range(held)]
    in_test = set(positions[:: held // test][:test])
    in_valid = set(positions) - in_test
    assigned = {"test": in_test, "valid": in_valid, "train": set(range(total)) - set(positions)}
    return {split: [[s[i] for i in sorted(assigned[split])] for s in lines] for split in SPLITS}


def prepare(
    corpus: Corpus,
    languages: Sequence[str],
    folder: Path,
    *,
    vocab_size: int,
    subword: Subword = "bpe",
    character_coverage: float = 1.0,
    workers: int = 1,
    origin: Mapping[str, object] | None = None,
) -> PreparedData:
    """Train SentencePiece on the training text, encode every split and binarise it for fairseq.

    The work is done beside `folder` and moved there at the end, so a folder that exists is whole.
    Languages share pieces and dictionary.

    Args:
        corpus: Lines of every split and language.
        languages: (source, target) for translation, () for language modelling.
        folder: Folder of the data set; made with its parents.
        vocab_size: Pieces, at most (small texts give fewer).
        subword: Kind of SentencePiece model.
        character_coverage: Share of the training text's characters, from the most frequent on, that
            the SentencePiece model knows; others become `<unk>`.
        workers: Processes of fairseq-preprocess.
        origin: Description of what the text was made from, kept in the manifest.

    Raises:
        DataError: a split holds no text, or SentencePiece or fairseq-preprocess refused it.
    """
    _check_corpus(corpus, subword)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pieces = partial / "pieces"
    pieces.mkdir(parents=True)
    endings = list(languages) or ["txt"]
    logger.info("training a SentencePiece %s model of %d pieces", subword, vocab_size)
    model = train_pieces(
        (line for side in corpus["train"] for line in side if line.strip()),
        vocab_size=vocab_size,
        subword=subword,
        character_coverage=character_coverage,
    )
    (partial / SENTENCEPIECE_MODEL).write_bytes(model)
    encode(model, corpus, endings, pieces)
    logger.info("binarising with fairseq-preprocess")
    _binarise(partial, pieces, languages, endings, workers)
    manifest = {
        "languages": list(languages),
        "vocab_size": vocab_size,
        "subword": subword,
        "character_coverage": character_coverage,
        "lines": {split: len(sides[0]) for split, sides in corpus.items()},
        "digest": corpus_digest(corpus),
        "origin": dict(origin or {}),
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return PreparedData(folder=folder, languages=tuple(languages))


def _check_corpus(corpus: Corpus, subword: str) -> None:
    """Refuse what gives no data set, and warn of what is odd."""
    if subword not in get_args(Subword):
        raise DataError(f"subword must be one of {', '.join(get_args(Subword))}, not {subword!r}")
    for split in SPLITS:
        if not all(any(line.strip() for line in side) for side in corpus[split]):
            raise DataError(f"the {split} split holds no text")
    for remark in remarks_on(corpus):
        logger.warning("%s", remark)


def prepare_classification(corpus: Corpus, folder: Path, *, vocab_size: int) -> Path:
    """Make a data set for fairseq's `sentence_prediction` of words and labels.

    `input0` in it is a data set of its own, on which a model can be trained as a masked language
    model first.

    Args:
        corpus: Lines of each split and their labels, one word each.
        folder: Folder of the data set; made with its parents.
        vocab_size: Number of words, at most.

    Returns:
        The folder.

    Raises:
        DataError: SentencePiece or fairseq-preprocess refused the text.
    """
    text = {split: [lines] for split, (lines, _) in corpus.items()}
    prepare(text, (), folder / "input0", vocab_size=vocab_size, subword="word")
    pieces = folder / "label" / "pieces"
    pieces.mkdir(parents=True)
    for split, (_, labels) in corpus.items():
        (pieces / f"{split}.txt").write_text("".join(f"{label}\n" for label in labels))
    _binarise(folder / "label", pieces, (), ["txt"], workers=1)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `prepare` wrote about a data set; empty for one made otherwise."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def lines_text(folder: Path) -> str:
    """How many lines the splits of a data set have, in words; empty for one made otherwise."""
    lines = read_manifest(folder).get("lines")
    known = lines if isinstance(lines, dict) else {}
    counts = [(split, known[split]) for split in SPLITS if isinstance(known.get(split), int)]
    return ", ".join(f"{split} {count:,}" for split, count in counts)


def load_prepared(folder: Path, languages: Sequence[str] = ()) -> PreparedData:
    """Open a folder made by `prepare`, or any binarised fairseq data set.

    Args:
        folder: Folder of the data set.
        languages: Source and target that are wanted; empty for those that the data set has.

    Raises:
        DataError: the folder holds no data set, or not of these languages, or of several pairs of
            languages where none is named.
    """
    kept = read_manifest(folder).get("languages")
    is_kept = isinstance(kept, list) and len(kept) in (0, 2) and set(map(type, kept)) <= {str}
    chosen = choose_languages(folder, languages, kept if is_kept else None)
    return PreparedData(folder=folder, languages=chosen)


CHECKPOINT_TASKS = ("translation", "language_modeling", "masked_lm")
"""That a checkpoint may ask for; some others run parts of their configuration as code."""


def point_at(task: Any, folder: Path) -> None:
    """Let the task of a checkpoint read a data set, in the checkpoint's own languages.

    fairseq takes whatever pair it finds first where a checkpoint names none.

    Args:
        task: Configuration of the task, as a namespace or OmegaConf's; changed.
        folder: Folder of the data set.

    Raises:
        DataError: the data set does not hold these languages, or it holds several pairs and the
            checkpoint does not say which, or the task is none of `CHECKPOINT_TASKS`.
    """
    for name in (getattr(task, "_name", None), getattr(task, "task", None)):
        if name is not None and str(name).removeprefix("reported_") not in CHECKPOINT_TASKS:
            raise DataError(
                f"the checkpoint is of the task {name}; data is read for "
                f"{', '.join(CHECKPOINT_TASKS)} only"
            )
    task.data = str(folder)
    if str(task._name).removeprefix("reported_") == "translation":
        languages = load_prepared(folder, languages_of(task)).languages
        if languages:
            task.source_lang, task.target_lang = languages


def corpus_digest(corpus: Corpus) -> str:
    """Identify the text: sha256 over all lines of all splits."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for side in corpus[split]:
            digest.update("\n".join(side).encode() + b"\0")
    return digest.hexdigest()


def _binarise(
    folder: Path, pieces: Path, languages: Sequence[str], endings: Sequence[str], workers: int
) -> None:
    command = [sys.executable, "-m", "fairseq_cli.preprocess", f"--destdir={folder}"]
    for split in SPLITS:
        name = pieces / split if languages else pieces / f"{split}.{endings[0]}"
        command.append(f"--{split}pref={name}")
    if languages:
        source, target = languages
        command += [f"--source-lang={source}", f"--target-lang={target}", "--joined-dictionary"]
    else:
        command += ["--only-source"]
    command.append(f"--workers={workers}")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise DataError(f"fairseq-preprocess failed:\n{(done.stdout + done.stderr)[-2000:]}")
