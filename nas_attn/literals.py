"""Text read as plain values: literals, which fairseq would run as Python, and counts (20M, 2e7)."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal

from nas_attn.errors import UsageError

EVALUATED = (
    "adaptive_input_cutoff",
    "adaptive_softmax_cutoff",
    "character_filters",
    "xformers_att_config",
)
"""Arguments of a model that fairseq evaluates as it builds the model."""

Subword = Literal["bpe", "unigram", "word", "char"]
"""Kinds of SentencePiece models."""

AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?(?:[eE]\+?\d)?)([kMG]?)", re.ASCII)
FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for the known name that is most like a mistyped one; empty if none is like it.

    Args:
        name: The mistyped name.
        known: Names that there are.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def read_literal(text: str) -> Any:
    """The value of a literal.

    Raises:
        ValueError: the text is none.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{text[:100]!r} is no plain value") from None


def code_in(arguments: Mapping[str, Any]) -> str | None:
    """The name of a model's argument that holds more than a literal, if there is any."""
    for name in EVALUATED:
        text = arguments.get(name)
        if isinstance(text, str) and text:
            try:
                read_literal(text)
            except ValueError:
                return name
    return None


def parse_count(text: str, option: str) -> int:
    """Read a count: a number above zero, perhaps with k (thousands), M (millions) or G.

    Args:
        text: Text such as 1.5M; parts of one are dropped.
        option: Option that it was given to, for the message.

    Raises:
        UsageError: the text is no such number.
    """
    found = AMOUNT.fullmatch(text.strip())
    # Decimal, for as a float 0.29M would be one less than 290000.
    amount = int(Decimal(found[1]) * FACTORS[found[2]]) if found else 0
    if amount < 1:
        raise UsageError(
            f"{option}: {text!r} is no amount; write a number such as 500000, 500k, 20M or 1.5M"
        )
    return amount
