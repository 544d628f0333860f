"""The report file of a training, one validation a line: its writer and its reader.

The file is named by the environment variable `NAS_ATTN_REPORT`. A line is a JSON object: time
(seconds since 1970), epoch, num_updates, parameters (counts by name), phase of pruning (null where
nothing is pruned), metrics, and memory (the largest process's peak so far, in MiB of `gpu` or
`cpu`). It is read as if a stranger had written it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas_attn.config_model import faults_of
from nas_attn.errors import TrialFileError
from nas_attn.files import parse_json, read_bytes, size_of

logger = logging.getLogger(__name__)

REPORT_VARIABLE = "NAS_ATTN_REPORT"
REPORT_FILE = "report.jsonl"
MOST_REPORT_BYTES = 64 * 1024 * 1024
MOST_UPDATES = 2**31 - 1
"""What databases hold."""
LINE_BEGINS = re.compile(r'(?=\{"time":)')


def report_validation(
    num_updates: int,
    parameters: Mapping[str, int | None],
    metrics: Mapping[str, float],
    *,
    epoch: int | None = None,
    phase: str | None = None,
    memory: Mapping[str, float] | None = None,
) -> None:
    """Append a validation to the report, if one is asked for."""
    path = os.environ.get(REPORT_VARIABLE)
    if path is None:
        return
    line = {
        "time": time.time(),
        "epoch": epoch,
        "num_updates": num_updates,
        "parameters": dict(parameters),
        "phase": phase,
        "metrics": dict(metrics),
        **({} if memory is None else {"memory": dict(memory)}),
    }
    text = json.dumps(line) + "\n"
    with Path(path).open("a+b") as file:
        # A line that was truncated, by a kill or a full disk, must not take this one with it.
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            text = "\n" + text
        file.write(text.encode())


class _Validation(BaseModel):
    """A line of a report; a loss may be no number, which is a result like any other."""

    model_config = ConfigDict(strict=True)

    num_updates: Annotated[int, Field(ge=0, le=MOST_UPDATES)]
    metrics: dict[str, float]
    time: float = 0.0
    epoch: int | None = None
    parameters: dict[str, int | None] = Field(default_factory=dict)
    phase: str | None = None
    memory: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )


def read_report(folder: Path) -> list[dict[str, Any]]:
    """The validations of one training in the order of updates; repeated ones once, the last.

    A training that was continued may validate again what it had validated before it stopped. A
    killed one may leave half a line, which the continued one repeats, as a validation is reported
    before the checkpoint that it belongs to.

    Returns:
        num_updates, metrics, time, epoch, parameters, phase and memory of each.

    Raises:
        TrialFileError: the file cannot be read, or a line is no validation.
    """
    return _read_report(folder / REPORT_FILE)[0]


def _read_report(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The validations, and the numbers of the lines that were torn."""
    by_update: dict[int, dict[str, Any]] = {}
    torn = []
    content = read_bytes(path, MOST_REPORT_BYTES) or b""
    for number, line in enumerate(content.split(b"\n"), start=1):
        found = _validations(line, f"{path}, line {number}")
        by_update |= {validation["num_updates"]: validation for validation in found or ()}
        if found is None:
            torn.append(number)
    if torn and not content.endswith(b"\n"):
        torn = [number for number in torn if number <= content.count(b"\n")]  # it is being written
    return [by_update[update] for update in sorted(by_update)], torn


def _validations(line: bytes, place: str) -> list[dict[str, Any]] | None:
    """What a line holds; None if a part of it was torn off and nothing else is there.

    Earlier versions wrote behind half a line, so a whole one may follow in the same.

    Raises:
        TrialFileError: the line is no validation, nor the beginning of one.
    """
    if not line.strip():
        return []
    text = line.decode("utf-8", errors="replace")
    found = []
    for part in [text] if parse_json(text) is not None else LINE_BEGINS.split(text):
        data = parse_json(part)
        if data is not None:
            found.append(_checked(data[0], place))
        elif part and not (part.startswith("{") and part.isascii() and part.isprintable()):
            raise TrialFileError(f"{place}: is damaged: {part[:60]!r}")
    return found or None


def _checked(data: Any, place: str) -> dict[str, Any]:
    try:
        return _Validation.model_validate(data).model_dump()
    except ValidationError as error:
        fault = faults_of(error)[0]
        raise TrialFileError(f"{place}: is no validation: {fault}") from None


class Report:
    """The report of one training; it is read again only when its file has grown."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REPORT_FILE
        self._size = 0
        self._lines: list[dict[str, Any]] = []
        self._torn: list[int] = []

    def lines(self) -> list[dict[str, Any]]:
        """The validations, as `read_report` gives them.

        Raises:
            TrialFileError: as `read_report` does.
        """
        size = size_of(self._path)
        if size != self._size:
            self._lines, torn = _read_report(self._path)
            self._size = size
            for number in torn[len(self._torn) :]:
                logger.warning(
                    "%s, line %d: was truncated as it was written, and is left out",
                    self._path,
                    number,
                )
            self._torn = torn
        return self._lines
