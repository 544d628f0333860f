"""Text to binarised data: nothing lost, nothing misaligned, errors that say what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fairseq.data import Dictionary, data_utils

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.data import (
    PreparedData,
    find_split_files,
    hold_out,
    load_prepared,
    prepare,
    read_corpus,
    read_lines,
    read_manifest,
    splits_beside,
)
from nas_attn.fairseq_tools.demo_data import make_demo_corpus
from nas_attn.fairseq_tools.models import load_dictionaries


def count_sentences(data: PreparedData, split: str) -> int:
    source, target = data.languages
    prefix = data.folder / f"{split}.{source}-{target}.{source}"
    dictionary = Dictionary.load(str(data.folder / f"dict.{source}.txt"))
    return len(data_utils.load_indexed_dataset(str(prefix), dictionary))


def test_every_sentence_arrives(tiny_translation: PreparedData) -> None:
    counts = [count_sentences(tiny_translation, split) for split in ("train", "valid", "test")]
    assert counts == [300, 61, 61]
    assert read_manifest(tiny_translation.folder)["lines"] == dict(
        zip(("train", "valid", "test"), counts, strict=True)
    )
    assert tiny_translation.sentencepiece_model.is_file()


def test_pieces_decode_to_the_text(tiny_translation: PreparedData) -> None:
    source, target = tiny_translation.languages
    dictionary = Dictionary.load(str(tiny_translation.folder / f"dict.{target}.txt"))
    prefix = tiny_translation.folder / f"test.{source}-{target}.{target}"
    dataset = data_utils.load_indexed_dataset(str(prefix), dictionary)
    decoded = dictionary.string(dataset[0], "sentencepiece")
    assert decoded == make_demo_corpus(seed=3, train_sentences=300)["test"][1][0]
    assert dictionary.unk() not in dataset[0]


def test_multi30k_arrives_whole(real_data: Path, tmp_path: Path) -> None:
    corpus = read_corpus(find_split_files(real_data / "multi30k_en_de", ["en", "de"]))
    assert {split: len(sides[0]) for split, sides in corpus.items()} == {
        "train": 29000, "valid": 1014, "test": 1000,
    }  # fmt: skip
    small = {**corpus, "train": [side[:2000] for side in corpus["train"]]}
    data = prepare(small, ["en", "de"], tmp_path / "set", vocab_size=500)
    assert [count_sentences(data, split) for split in ("valid", "test")] == [1014, 1000]


def test_the_demo_is_what_its_seed_says() -> None:
    corpus = make_demo_corpus(seed=1, train_sentences=50)
    assert corpus == make_demo_corpus(seed=1, train_sentences=50)
    assert corpus != make_demo_corpus(seed=2, train_sentences=50)
    for source, target in zip(*corpus["train"], strict=True):
        assert target.split() == [f"{word}n" for word in sorted(source.split())]


def test_reading(tmp_path: Path) -> None:
    text = "one\u2028still one\r\n\n two \n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    assert read_lines(tmp_path / "a.txt") == ["one\u2028still one", "", " two "]
    assert read_lines(tmp_path / "b.txt.gz") == read_lines(tmp_path / "a.txt")


def test_holding_out() -> None:
    lines = [[f"{side}{index}" for index in range(50)] for side in "st"]
    corpus = hold_out(lines, valid=7, test=5)
    assert [len(corpus[split][0]) for split in ("train", "valid", "test")] == [38, 7, 5]
    everything = [line for split in corpus.values() for line in split[0]]
    assert sorted(everything) == sorted(lines[0])
    for source, target in zip(*corpus["valid"], strict=True):
        assert source[1:] == target[1:]


@pytest.mark.parametrize(("valid", "test"), [(0, 5), (5, 0), (20, 10)])
def test_holding_out_too_much(valid: int, test: int) -> None:
    with pytest.raises(DataError, match=f"cannot hold out {valid} and {test} of 50 lines"):
        hold_out([["x"] * 50], valid, test)


def test_bad_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("a\nb\n")
    (tmp_path / "train.de").write_text("a\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("one\ntwo\n".encode("utf-16-le"))
    (tmp_path / "odd.txt.gz").write_bytes(gzip.compress(b"some text\n" * 99)[:10] + b"\xff" * 9)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some text\n" * 99)[:-9])
    with pytest.raises(DataError, match=r"numbers of lines: train\.en 2, train\.de 1"):
        read_corpus({"train": [tmp_path / "train.en", tmp_path / "train.de"]})
    for name, message in (
        ("empty.txt", "is empty"), ("latin.txt", "line 1 is not UTF-8"), ("cut.txt.gz", "ended"),
        ("wide.txt", "line 1 holds a NUL"), ("odd.txt.gz", "invalid"), ("absent.txt", "No such"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            read_lines(tmp_path / name)
    with pytest.raises(DataError, match=r"lacks valid.en, valid.de, test.en, test.de"):
        find_split_files(tmp_path, ["en", "de"])
    with pytest.raises(DataError, match="does not exist"):
        find_split_files(tmp_path / "absent", ["en", "de"])


def test_preparing_fails_whole(tmp_path: Path) -> None:
    corpus = {split: [["   "]] for split in ("train", "valid", "test")}
    with pytest.raises(DataError, match="the train split holds no text"):
        prepare(corpus, (), tmp_path / "set", vocab_size=100)
    with pytest.raises(DataError, match=r"SentencePiece: .*Vocabulary size is smaller"):
        prepare({split: [["abcdefgh"]] for split in corpus}, (), tmp_path / "set", vocab_size=4)
    assert not (tmp_path / "set").exists()


def test_opening_what_others_binarised(tiny_translation: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no binarised"):
        load_prepared(tmp_path)
    for name in ("train.en-de.en.idx", "train.en-de.de.idx"):
        (tmp_path / name).touch()
    assert load_prepared(tmp_path).languages == ("en", "de")
    assert load_prepared(tiny_translation.folder) == tiny_translation


def test_a_dictionary_that_fairseq_refuses(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 3\n<unk> 2\n")
    with pytest.raises(DataError, match=r"dict\.txt is no dictionary: Duplicate word"):
        load_dictionaries(PreparedData(folder=tmp_path, languages=()), "language_modeling")


@pytest.mark.parametrize("names", ["valid.en", "valid.en valid.de", "valid.en valid.de test.de.gz"])
def test_sets_that_are_half_there_are_refused(names: str, tmp_path: Path) -> None:
    training = [tmp_path / "train.en", tmp_path / "train.de.gz"]
    assert splits_beside(training, ["en", "de"]) is None
    for name in ["train.en", "train.de.gz", *names.split()]:
        (tmp_path / name).write_bytes(gzip.compress(b"a\n") if name.endswith(".gz") else b"a\n")
    with pytest.raises(DataError, match=rf"lacks .*, but holds {names.replace(' ', ', ')}: add"):
        splits_beside(training, ["en", "de"])
    for split in ("valid", "test"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("a\nb\n")
    found = splits_beside(training, ["en", "de"])
    assert found is not None and found["train"] == training
    (tmp_path / "test.de").write_text("a\n")
    with pytest.raises(DataError, match="test: the sides have different numbers of lines"):
        read_corpus(splits_beside([training[0]] * 2, ["en", "de"]) or found)
