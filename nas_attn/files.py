"""Files: read as if a stranger had written them, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import secrets
from pathlib import Path
from typing import Any

from nas_attn.errors import TrialFileError

COMPRESSED = ".gz"
"""How names of gzipped files end."""
JOURNAL = "journal.log"
"""File of a run folder that holds the record of its study."""


def read_bytes(path: Path, most: int) -> bytes | None:
    """A file; None if it is not there.

    Raises:
        TrialFileError: it cannot be read, or is larger than any that a training writes.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= most:
                return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrialFileError(f"{path} cannot be read: {error.strerror}") from error
    raise TrialFileError(f"{path} is larger than {most} bytes, as no training writes it")


def parse_json(text: str) -> tuple[Any] | None:
    """The value of a JSON text; None if it is none."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one.

    Several processes may write one at once: the last one's is left, whole.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, gzipped if the name ends in `.gz`, whole or not at all.

    The same text gives the same bytes.
    """
    data = text.encode()
    write_whole(path, gzip.compress(data, mtime=0) if path.suffix == COMPRESSED else data)


def write_json(path: Path, data: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")
