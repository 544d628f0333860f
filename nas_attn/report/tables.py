"""Tables as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_attn.files import write_text


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of one kind as CSV, gzipped if the name ends in `.gz`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
