"""The files of a trial's folder, read as if a stranger had written them.

A disk fills, a machine loses power, people edit. What cannot be what a training has written is a
`TrialFileError`, which names the file and ends that trial alone; what costs nothing to do without
is left out with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nas_attn.config_model import faults_of
from nas_attn.errors import NasAttnError
from nas_attn.plan import AttentionPlan
from nas_attn.trials.failures import TrialFileError, last_lines

logger = logging.getLogger(__name__)

REPORT_FILE, STATE_FILE, PLAN_FILE = "report.jsonl", "finished.json", "plan.json"
CALIBRATION_FILE = "calibration.pt"
TAIL_BYTES = 256 * 1024
"""So much of a log's end is read, at most; what counts stands there."""
MOST_REPORT_BYTES = 64 * 1024 * 1024
MOST_JSON_BYTES = 4 * 1024 * 1024
MOST_UPDATES = 2**31 - 1
"""What databases hold."""
LINE_BEGINS = re.compile(r'(?=\{"time":)')
NUMBER = r"(\d+(?:\.\d+)?)"

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(allow_inf_nan=False, ge=0)]


class _Validation(BaseModel):
    """A line of a report; a loss may be no number, which is a result like any other."""

    model_config = ConfigDict(strict=True)

    num_updates: Annotated[int, Field(ge=0, le=MOST_UPDATES)]
    metrics: dict[str, float]
    time: float = 0.0
    epoch: int | None = None
    parameters: dict[str, int | None] = Field(default_factory=dict)
    phase: str | None = None


def _as_plan(data: dict[str, Any] | None) -> dict[str, Any] | None:
    if data is not None:
        AttentionPlan.from_json(data)
    return data


class _State(BaseModel):
    """What is finished of a run."""

    model_config = ConfigDict(strict=True, extra="allow")

    seconds: NotNegative = 0.0
    started: bool = False
    finished: bool = False
    plan: Annotated[dict[str, Any] | None, AfterValidator(_as_plan)] = None
    test: dict[str, Finite] = Field(default_factory=dict)
    test_loss: dict[str, Finite] = Field(default_factory=dict)
    decoding_seconds: list[NotNegative] = Field(default_factory=list)


def read_report(folder: Path) -> list[dict[str, Any]]:
    """The validations of one training in the order of updates; repeated ones once, the last.

    A training that was continued may validate again what it had validated before it stopped. A
    killed one may leave half a line, which the continued one repeats, as a validation is reported
    before the checkpoint that it belongs to.

    Returns:
        num_updates, metrics, time, epoch, parameters and phase of each.

    Raises:
        TrialFileError: the file cannot be read, or a line is no validation.
    """
    return _read_report(folder / REPORT_FILE)[0]


def _read_report(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The validations, and the numbers of the lines that were torn."""
    by_update: dict[int, dict[str, Any]] = {}
    torn = []
    content = _read(path, MOST_REPORT_BYTES) or b""
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
    for part in [text] if _parse(text) is not None else LINE_BEGINS.split(text):
        data = _parse(part)
        if data is not None:
            found.append(_checked(data[0], place))
        elif part and not (part.startswith("{") and part.isascii() and part.isprintable()):
            raise TrialFileError(f"{place}: is damaged: {part[:60]!r}")
    return found or None


def _parse(text: str) -> tuple[Any] | None:
    """The value of a JSON text; None if it is none."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


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
                    "%s, line %d: was cut off as it was written, and is left out",
                    self._path,
                    number,
                )
            self._torn = torn
        return self._lines


def read_state(folder: Path) -> dict[str, Any]:
    """What is finished of a run, as far as there is any.

    `seconds` of training, `started` (there is a checkpoint to start from), `finished` (training
    and pruning), `plan` (after pruning), `test` and `test_loss` (scores) and `decoding_seconds`
    (of each measurement). Of a damaged file nothing is believed: the steps are done again, of
    which a training that had ended ends at once.

    Raises:
        TrialFileError: the file cannot be read.
    """
    path = folder / STATE_FILE
    content = _read(path, MOST_JSON_BYTES)
    if content is None:
        return {}
    data = _parse(content.decode("utf-8", errors="replace"))
    try:
        if data is None:
            raise TrialFileError("is no JSON")
        return _State.model_validate(data[0]).model_dump(exclude_unset=True)
    except (ValidationError, TrialFileError) as error:
        fault = faults_of(error)[0] if isinstance(error, ValidationError) else error
        logger.warning("%s is damaged, so nothing of it is believed: %s", path, fault)
        return {}


def is_of_another_plan(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether a trial's folder holds what was made of another plan.

    Raises:
        TrialFileError: its plan cannot be read.
    """
    content = _read(folder / PLAN_FILE, MOST_JSON_BYTES)
    data = None if content is None else _parse(content.decode("utf-8", errors="replace"))
    if data is None or data[0] == plan:
        return False
    try:
        return AttentionPlan.from_json(data[0]) != AttentionPlan.from_json(plan)
    except (ValueError, TypeError, AttributeError):
        return True


def end_of_log(path: Path, after: int = 0) -> str:
    """The end of a log, in whole lines.

    Args:
        path: of the log; one that is not there is `(no log)`.
        after: bytes at its beginning that belong to others.

    Raises:
        TrialFileError: it cannot be read.
    """
    try:
        with path.open("rb") as log:
            begin = max(after, log.seek(0, 2) - TAIL_BYTES)
            log.seek(begin)
            text = log.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return "(no log)"
    except OSError as error:
        raise TrialFileError(f"{path} cannot be read: {error.strerror}") from error
    whole = text.partition("\n")[2] if begin > after else text
    return whole or text


def parse_scores(output: str) -> dict[str, float]:
    """The scores that an evaluation has printed.

    `bleu` of fairseq-generate; `nll_loss` (in bits) and `ppl` of fairseq-eval-lm; `loss`,
    `nll_loss`, `ppl` and `accuracy` of fairseq-validate, as far as its criterion has them.

    Raises:
        NasAttnError: there is none.
    """
    bleu = re.findall(rf"\bBLEU\S* = {NUMBER}", output)
    if bleu:
        return {"bleu": float(bleu[-1])}
    perplexity = re.findall(rf"Loss \(base 2\): {NUMBER}, Perplexity: {NUMBER}", output)
    if perplexity:
        loss, ppl = perplexity[-1]
        return {"nll_loss": float(loss), "ppl": float(ppl)}
    validation = re.findall(r"\| valid on '.*' subset (\|.*)", output)
    if validation:
        pairs = re.findall(rf"\| (loss|nll_loss|ppl|accuracy) {NUMBER}(?![^ \n])", validation[-1])
        if pairs:
            return {name: float(value) for name, value in pairs}
    raise NasAttnError(f"it printed no score:\n{last_lines(output)}")


def parse_decoding_seconds(output: str) -> float:
    """Seconds for a sentence, from what fairseq-generate has printed; loading is not counted.

    Raises:
        NasAttnError: it has not said how fast it was.
    """
    # The rate has more digits than the time, which is rounded to tenths of a second.
    rates = re.findall(rf"Translated .* sentences \(.*\) in .*s \({NUMBER} sentences/s", output)
    if not rates or float(rates[-1]) == 0:
        raise NasAttnError(f"it did not say how fast it decodes:\n{last_lines(output)}")
    return 1.0 / float(rates[-1])


def checkpoint_is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end (torch writes zip files).

    Raises:
        OSError: it cannot be read, which says nothing about the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError:
        raise
    except Exception:  # of what is damaged, zipfile says so in many ways
        return False


def fault_of_start(path: Path) -> str | None:
    """Why a checkpoint that trials start from is of no use; None if nothing speaks against it."""
    try:
        state = path.stat()
    except OSError as error:
        return "is gone" if isinstance(error, FileNotFoundError) else f"({error.strerror})"
    if not path.is_file():
        return "is no file"
    return _fault_as_of(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _fault_as_of(path: Path, _modified: int, _size: int) -> str | None:
    try:
        with path.open("rb") as file:
            is_old = file.read(1) == b"\x80"  # as torch wrote them before they were zip files
        return None if is_old or checkpoint_is_whole(path) else "is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, most: int) -> bytes | None:
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
