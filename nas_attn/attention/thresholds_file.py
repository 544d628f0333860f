"""The file of thresholds that `nas-attn bench attention --calibrate` writes.

It is JSON and checked by hand, as attention is to need nothing but torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

from nas_attn.attention.thresholds import (
    DTYPES,
    ForSharedHeads,
    ForUnequalWidths,
    Thresholds,
    put_before_built_in,
)
from nas_attn.errors import ConfigError, ConfigIssue
from nas_attn.files import parse_json, write_json

VARIABLE = "NAS_ATTN_THRESHOLDS"
VERSION = 1
LARGEST_FILE = 1 << 20
MOST_ROWS = 1000
LONGEST_SOURCE = 500
LARGEST = 2**62


def use_thresholds(path: Path | str | None) -> None:
    """Choose implementations of attention by measured thresholds, in this process from now on.

    The environment variable NAS_ATTN_THRESHOLDS names a file likewise, for commands and for the
    processes that they start; it is read as `nas_attn.attention` is imported, and made absolute, so
    that processes that are started in other folders find the file.

    Args:
        path: File that `nas-attn bench attention --calibrate` wrote; what it says nothing of is
            chosen as before. None goes back to the built-in table alone.

    Raises:
        ConfigError: the file cannot be read, or says what no table says; nothing is changed then.
    """
    put_before_built_in(() if path is None else read_thresholds(Path(path)))


def read_thresholds(path: Path) -> tuple[Thresholds, ...]:
    """Read a file of thresholds.

    Raises:
        ConfigError: it cannot be read, or says what no table says.
    """
    faults: list[ConfigIssue] = []
    rows = _rows(_tree(path), faults)
    if faults:
        raise ConfigError(str(path), faults)
    return tuple(Thresholds(**row) for row in rows)


def write_thresholds(table: Sequence[Thresholds], path: Path) -> None:
    """Write a file that `use_thresholds` reads."""
    write_json(path, {"version": VERSION, "thresholds": [asdict(row) for row in table]})


def _tree(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        text = data.decode() if len(data) <= LARGEST_FILE else None
    except OSError as error:
        raise ConfigError(str(path), [ConfigIssue("(file)", str(error))]) from None
    except UnicodeDecodeError:
        text = None
    parsed = None if text is None else parse_json(text)
    if parsed is None:
        message = f"is not JSON of at most {LARGEST_FILE:,} bytes"
        raise ConfigError(str(path), [ConfigIssue("(file)", message)])
    return parsed[0]


def _rows(tree: Any, faults: list[ConfigIssue]) -> list[dict[str, Any]]:
    if not _has_keys(tree, ("version", "thresholds"), "", faults):
        return []
    if type(tree["version"]) is not int or tree["version"] != VERSION:
        faults.append(ConfigIssue("version", f"must be {VERSION}"))
    rows = tree["thresholds"]
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_ROWS:
        faults.append(ConfigIssue("thresholds", f"must be a list of 1 to {MOST_ROWS} sections"))
        return []
    for number, row in enumerate(rows):
        at = f"thresholds.{number}."
        if _has_keys(row, tuple(CHECKS), at, faults):
            found = ((key, CHECKS[key](value)) for key, value in row.items())
            faults += [ConfigIssue(f"{at}{key}", message) for key, message in found if message]
    return rows


def _has_keys(section: Any, keys: Sequence[str], at: str, faults: list[ConfigIssue]) -> bool:
    """Whether it is a section of just these keys."""
    if not isinstance(section, dict):
        faults.append(ConfigIssue(at.rstrip(".") or "(file)", "must be a section of keys"))
        return False
    missing = [ConfigIssue(f"{at}{key}", "is missing") for key in keys if key not in section]
    unknown = [ConfigIssue(f"{at}{key}"[:100], "unknown key") for key in section if key not in keys]
    faults += missing + unknown
    return not missing and not unknown


def _one_of(*words: str | None) -> Callable[[Any], str]:
    said = ", ".join(json.dumps(word) for word in words)
    return lambda value: "" if value in words and type(value) is not bool else f"must be of {said}"


def _amount(*, or_null: bool = False) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if (or_null and value is None) or (type(value) is int and 0 <= value <= LARGEST):
            return ""
        return f"must be a whole number from 0 to {LARGEST}{' or null' * or_null}"

    return check


def _source(value: Any) -> str:
    if isinstance(value, str) and 0 < len(value) <= LONGEST_SOURCE:
        return ""
    return f"must be a text of 1 to {LONGEST_SOURCE} characters"


def _capability(value: Any) -> str:
    if value is None or (isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}\.[0-9]", value)):
        return ""
    return 'must be a compute capability such as "9.0", or null'


CHECKS: dict[str, Callable[[Any], str]] = {
    "source": _source,
    "device": _one_of("cpu", "cuda"),
    "capability": _capability,
    "dtype": _one_of(*DTYPES, None),
    "explicit_max_scores": _amount(),
    "unequal_widths": _one_of(*get_args(ForUnequalWidths)),
    "one_head": _one_of(*get_args(ForSharedHeads)),
    "grouped_heads": _one_of(*get_args(ForSharedHeads)),
    "shared_scores_min_queries": _amount(or_null=True),
    "shared_scores_min_work": _amount(),
}
"""What is wrong with a value, by its key; every key must be there."""

assert set(CHECKS) == {field.name for field in fields(Thresholds)}

if os.environ.get(VARIABLE):
    os.environ[VARIABLE] = str(Path(os.environ[VARIABLE]).absolute())
    use_thresholds(os.environ[VARIABLE])
