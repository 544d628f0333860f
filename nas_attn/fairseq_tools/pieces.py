"""SentencePiece: models of the training text, and text cut into their pieces."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nas_attn.errors import DataError
from nas_attn.fairseq_tools.folders import SPLITS
from nas_attn.literals import Subword

logger = logging.getLogger(__name__)

Corpus = Mapping[str, Sequence[Sequence[str]]]
"""For each split, for each language, the lines."""

LINE_BYTES = 4192
"""SentencePiece leaves out longer lines unless it is set otherwise."""
RESERVED = "\u2585"
"""SentencePiece leaves out lines that hold this character, which stands for unknown ones."""
NEXT_LINE = "\x85"
"""A space to fairseq, but not to SentencePiece."""
UNKNOWN = "<unk>"
"""As fairseq's dictionaries have it."""


def train_pieces(
    lines: Iterable[str], *, vocab_size: int, subword: Subword, character_coverage: float
) -> bytes:
    """Train a SentencePiece model on every line, however long, and return it as a file holds it.

    Args:
        lines: Lines with text in each.
        vocab_size: Pieces, at most.
        subword: Kind of model.
        character_coverage: Share of all characters, from the most frequent on, that it knows.

    Raises:
        DataError: SentencePiece refused.
    """
    import sentencepiece

    text = [line.replace(NEXT_LINE, " ").replace(RESERVED, " ") for line in lines]
    longest = max((len(line.encode()) for line in text), default=0)
    made = io.BytesIO()  # a file's path would be kept in the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=made,
            vocab_size=vocab_size,
            model_type=subword,
            character_coverage=character_coverage,
            max_sentence_length=max(longest, LINE_BYTES),
            hard_vocab_limit=False,
            use_all_vocab=subword == "word",
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece: {error}") from None
    return made.getvalue()


def encode(model: bytes, corpus: Corpus, endings: Sequence[str], folder: Path) -> None:
    """Write every side of a corpus in pieces of a model, as `SPLIT.ENDING`.

    What the model does not know is written as `<unk>`, or each such run of characters would become
    a type of the dictionary.
    """
    import sentencepiece

    encoder = sentencepiece.SentencePieceProcessor(model_proto=model)
    # The model's own symbols (control, unknown) are no pieces of text.
    known = {
        encoder.id_to_piece(index)
        for index in range(encoder.get_piece_size())
        if not encoder.is_control(index) and not encoder.is_unknown(index)
    }
    for split in SPLITS:
        total = unknown = 0
        for ending, side in zip(endings, corpus[split], strict=True):
            encoded = encoder.encode([line.replace(NEXT_LINE, " ") for line in side], out_type=str)
            with (folder / f"{split}.{ending}").open("w", encoding="utf-8") as file:
                for line in encoded:
                    written = [piece if piece in known else UNKNOWN for piece in line]
                    total += len(written)
                    unknown += written.count(UNKNOWN)
                    file.write(" ".join(written) + "\n")
        if unknown:
            logger.warning(
                "%s: %d of %d pieces are unknown to the SentencePiece model and become %s",
                split,
                unknown,
                total,
                UNKNOWN,
            )


def remarks_on(corpus: Corpus) -> list[str]:
    """What is odd about aligned text, though it can be used: empty lines, and lines held out twice.

    Args:
        corpus: Texts of two languages; with one, empty lines part paragraphs and common lines are
            natural.
    """
    if len(corpus["train"]) < 2:
        return []
    found = []
    for split in SPLITS:
        pairs = list(zip(*corpus[split], strict=True))
        empty = sum(not all(side.strip() for side in pair) for pair in pairs)
        if empty:
            found.append(f"{split}: {empty} of {len(pairs)} lines are empty on a side")
    held_out = {pair for split in SPLITS[1:] for pair in zip(*corpus[split], strict=True)}
    trained = {pair for pair in zip(*corpus["train"], strict=True) if pair in held_out}
    for split in SPLITS[1:]:
        pairs = list(zip(*corpus[split], strict=True))
        seen = sum(pair in trained for pair in pairs)
        if seen:
            found.append(
                f"{split}: {seen} of {len(pairs)} lines stand in the training text too, so the "
                "loss on them flatters"
            )
    return found
