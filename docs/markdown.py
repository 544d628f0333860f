"""Pieces of Markdown that generated pages are made of."""

from __future__ import annotations

import re


def escaped(text: str) -> str:
    """A text in which nothing outside of backticks is markup."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([|*<\[\]])", r"\\\1", parts[index])
    return "`".join(parts)


def table(titles: list[str], rows: list[list[str]]) -> str:
    """A table; cells are Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(" ".join(c.split()) for c in line) + " |" for line in lines)
