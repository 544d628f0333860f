"""SentencePiece sees every line, and what it does not know makes no types."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import sentencepiece

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.pieces import Subword, encode, remarks_on, train_pieces

RANDOM = random.Random(1)


def words(letters: str, count: int) -> str:
    made = ("".join(RANDOM.choice(letters) for _ in range(6)) for _ in range(count))
    return " ".join(made)


SHORT = [words("abcdefg", 8) for _ in range(100)]


def types_of(lines: list[str], folder: Path, coverage: float = 1.0, kind: Subword = "bpe") -> int:
    model = train_pieces(lines, vocab_size=120, subword=kind, character_coverage=coverage)
    corpus = {"train": [lines], "valid": [["abc"]], "test": [["abc"]]}
    encode(model, corpus, ["txt"], folder)
    return len(set((folder / "train.txt").read_text(encoding="utf-8").split()))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
@pytest.mark.parametrize("short", [SHORT, []])
def test_long_lines_are_learnt_from(kind: Subword, short: list[str], tmp_path: Path) -> None:
    long_lines = [words("tuvwxyz", 1000), "".join(words("lmnop", 2000).split())]
    assert types_of([*short, *long_lines], tmp_path, kind=kind) <= 120


def test_reserved_characters_hide_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{line} \u2585 {words('wxyz', 3)}\x85{words('uv', 1)}" for line in SHORT]
    with caplog.at_level(logging.WARNING):
        assert types_of(lines, tmp_path) <= 121
    assert "train: 100 of " in caplog.text
    assert "pieces are unknown to the SentencePiece model and become <unk>" in caplog.text
    text = (tmp_path / "train.txt").read_text(encoding="utf-8")
    assert text.count("<unk>") == 100 and "\x85" not in text


def test_rare_characters_become_unknown(tmp_path: Path) -> None:
    rare = ["a" + "".join(chr(0x4E00 + 40 * index + i) for i in range(40)) for index in range(3)]
    many = [words("abcdefg", 200) for _ in range(10)]
    assert types_of([*many, *rare], tmp_path, coverage=0.99) <= 121
    with pytest.raises(DataError, match="Vocabulary size"):
        types_of([*many, *rare], tmp_path, coverage=1.0)


def test_a_model_holds_no_path(tmp_path: Path) -> None:
    model = train_pieces(SHORT, vocab_size=60, subword="bpe", character_coverage=1.0)
    assert str(tmp_path.parent).encode() not in model
    assert sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() == 60


def test_remarks() -> None:
    corpus = {
        "train": [["a", "b", "", "d"], ["A", "B", "C", ""]],
        "valid": [["a", "b"], ["A", "X"]],
        "test": [["x"], ["A"]],
    }
    assert remarks_on(corpus) == [
        "train: 2 of 4 lines are empty on a side",
        "valid: 1 of 2 lines stand in the training text too, so the loss on them flatters",
    ]
    assert remarks_on({split: sides[:1] for split, sides in corpus.items()}) == []
