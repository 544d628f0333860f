"""The data set of a study: opened, or made of its text."""

from __future__ import annotations

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.config import DataConfig, TextConfig
from nas_attn.fairseq_tools.data import (
    PreparedData,
    find_split_files,
    load_prepared,
    prepare,
    read_corpus,
)
from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_demo_corpus

DEMO_TYPES = 200
"""Types of the demo's dictionary, at most."""

PADDED_TO = 8
"""fairseq-preprocess fills a dictionary up to a multiple of so many types."""


def most_types(text: TextConfig | None) -> int | None:
    """Types that the dictionary of a study's text can come to, fairseq's symbols included.

    A data set has as many or a few less: pieces that only make longer ones are in no text. On
    Multi30k they were 3 % of 8,000.

    Returns:
        None where the number of pieces hardly depends on `vocab_size`, as with characters.
    """
    if text is None or text.subword not in ("bpe", "unigram"):
        return None
    # SentencePiece counts three symbols of its own among its pieces, fairseq adds four.
    return -(-(text.vocab_size + 1) // PADDED_TO) * PADDED_TO


def open_data(data: DataConfig) -> PreparedData:
    """Open a study's data set, with the languages that are trained.

    Raises:
        DataError: it is not prepared, or lacks these languages.
    """
    return load_prepared(data.folder.absolute(), data.trained_languages)


def prepare_data(data: DataConfig, *, workers: int = 1) -> PreparedData:
    """Make a study's data set if it is not there.

    Raises:
        DataError: the text cannot be read or binarised.
    """
    if data.folder.is_dir():
        return open_data(data)
    if data.demo is not None:
        corpus = make_demo_corpus(data.demo.seed, data.demo.train_sentences)
        return prepare(
            corpus,
            LANGUAGES,
            data.folder,
            vocab_size=DEMO_TYPES,
            subword="word",
            workers=workers,
            origin=data.origin,
        )
    if data.text is None:
        raise DataError(f"data.folder {data.folder} does not exist")
    files = find_split_files(data.text.folder, data.text.languages or ["txt"])
    return prepare(
        read_corpus(files),
        data.text.languages,
        data.folder,
        vocab_size=data.text.vocab_size,
        subword=data.text.subword,
        character_coverage=data.text.character_coverage,
        workers=workers,
        origin=data.origin,
    )
