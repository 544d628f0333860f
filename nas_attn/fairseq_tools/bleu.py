"""BLEU with the tokenizer that the target language needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

from nas_attn.bleu import DEFAULT, BleuTokenizer
from nas_attn.config_model import Scalar
from nas_attn.errors import ConfigIssue
from nas_attn.fairseq_tools.data import PreparedData

LINES = 500
"""Of the validation set, by which it is judged whether a language has spaces."""
FEW_SPACES = 0.04
"""Spaces a character; European languages have .1 to .2, Thai about .03."""

BLEU_FLAGS = (("eval-bleu", None), ("eval-bleu-args", '{"beam": 5}'))
"""Make fairseq translate the validation set each time."""


def validation_flags(tokenizer: BleuTokenizer) -> list[tuple[str, str | None]]:
    """Flags of fairseq-train that make it log BLEU at each validation."""
    if tokenizer == DEFAULT:
        return [*BLEU_FLAGS, ("eval-bleu-detok", "space")]  # which detokenises nothing
    arguments = json.dumps({"sacrebleu_tokenizer": tokenizer})
    return [
        *BLEU_FLAGS,
        ("eval-bleu-detok", "sacrebleu"),
        ("eval-bleu-detok-args", arguments),
        ("eval-tokenized-bleu", None),  # of text that is cut into tokens already
    ]


def scoring_flags(tokenizer: BleuTokenizer) -> list[str]:
    """Flags of fairseq-generate that make it print corpus BLEU."""
    flags = ["--scoring=sacrebleu"]
    return flags if tokenizer == DEFAULT else [*flags, f"--sacrebleu-tokenizer={tokenizer}"]


def check_tokenizer(tokenizer: BleuTokenizer, given: Mapping[str, Scalar]) -> list[ConfigIssue]:
    """What is wrong with a tokenizer for BLEU.

    Args:
        tokenizer: Name of the wanted tokenizer.
        given: The training's arguments, by dashed name.
    """
    import sacrebleu

    if tokenizer == DEFAULT:
        return []
    key = "objectives.bleu_tokenizer"
    faults = [
        ConfigIssue(
            f"training.arguments.{name}", f"{key} {tokenizer} sets it; leave one of them out"
        )
        for name in ("eval-bleu-detok", "eval-bleu-detok-args")
        if given.get(name, False) is not False
    ]
    try:
        sacrebleu.BLEU(tokenize=tokenizer)
    except Exception as error:  # of libraries that are not there, of many kinds
        language = tokenizer.partition("-")[0]
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"{tokenizer} cannot be used here: {why} pip install 'sacrebleu[{language}]'"
        faults.append(ConfigIssue(key, message))
    return faults


def advice(tokenizer: BleuTokenizer, data: PreparedData) -> str:
    """What to say about a target language that the default tokenizer does not cut; else nothing."""
    if tokenizer != DEFAULT or not data.languages or not data.sentencepiece_model.is_file():
        return ""
    share = spaces_per_character(data)
    if share >= FEW_SPACES:
        return ""
    names = ", ".join(name for name in get_args(BleuTokenizer) if name not in (DEFAULT, "none"))
    return (
        f"the target language {data.languages[1]} has hardly a space ({100 * share:.1f} in 100 "
        f"characters), so BLEU by {DEFAULT} takes whole sentences for words and is near 0: set "
        f"objectives.bleu_tokenizer to char, or to another of {names}"
    )


def spaces_per_character(data: PreparedData) -> float:
    """Spaces a character of the target, over lines of the validation set; 1 if there is no text.

    Args:
        data: A translation data set in pieces of SentencePiece.
    """
    from fairseq.data import Dictionary, data_utils

    from nas_attn.fairseq_tools.folders import split_files

    target = data.languages[1]
    dictionary = Dictionary.load(str(data.folder / f"dict.{target}.txt"))
    files = split_files(data.folder, data.languages, "valid")
    (index,) = [path for path in files if path.name.endswith(f".{target}.idx")][:1]
    lines = data_utils.load_indexed_dataset(str(index.with_suffix("")), dictionary)
    step = max(1, len(lines) // LINES)
    text = [dictionary.string(lines[i], "sentencepiece") for i in range(0, len(lines), step)]
    characters = sum(map(len, text))
    return sum(line.count(" ") for line in text) / characters if characters else 1.0
