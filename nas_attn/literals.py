"""Text that fairseq runs as Python, held to literals: numbers, words, and lists of such."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

EVALUATED = (
    "adaptive_input_cutoff",
    "adaptive_softmax_cutoff",
    "character_filters",
    "xformers_att_config",
)
"""Arguments of a model that fairseq evaluates as it builds the model."""


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
