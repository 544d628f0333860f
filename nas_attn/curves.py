"""Learning curves of trainings, and the CSV file that holds them, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from nas_attn.errors import DataError
from nas_attn.files import COMPRESSED, write_text
from nas_attn.plan import AttentionPlan
from nas_attn.validation_log import MOST_UPDATES

COLUMNS = ("plan", "seed", "num_updates", "loss", "seconds")
"""Ending of files that are gzipped."""


class Point(NamedTuple):
    """One validation; `seconds` count from the training's start."""

    num_updates: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The validations of one training, in order; there is at least one."""

    points: tuple[Point, ...]

    @property
    def seconds(self) -> float:
        """How long the training took."""
        return self.points[-1].seconds


def recorded_curves(path: Path) -> dict[tuple[str, int], Curve]:
    """Read a CSV file with the columns plan, seed, num_updates, loss and seconds.

    It is gzipped if its name ends in `.gz`. A row is a validation. Rows of one training need not be
    neighbours, but are in order. Losses may be nan or inf.

    Returns:
        The curve of each (plan text, seed).

    Raises:
        DataError: the file is malformed; the message names line and column.
    """
    points: dict[tuple[str, int], list[Point]] = {}
    try:
        with _opened(path) as file:
            _read_rows(csv.DictReader(file, strict=True), points, path)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"recorded curves {path} cannot be read: {error}") from None
    if not points:
        raise DataError(f"{path} holds no curve")
    return {key: Curve(tuple(of_key)) for key, of_key in points.items()}


def write_curves(curves: Mapping[tuple[str, int], Curve], path: Path) -> None:
    """Write what `recorded_curves` reads, gzipped if the name ends in `.gz`.

    The same curves give the same bytes.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (plan_text, seed), curve in curves.items():
        writer.writerows((plan_text, seed, *point) for point in curve.points)
    write_text(path, text.getvalue())


def _opened(path: Path) -> IO[str]:
    if path.suffix == COMPRESSED:
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def _read_rows(
    reader: csv.DictReader[str], points: dict[tuple[str, int], list[Point]], path: Path
) -> None:
    plans: set[str] = set()
    try:
        if sorted(reader.fieldnames or ()) != sorted(COLUMNS):
            found = ",".join(reader.fieldnames or ()) or "nothing"
            raise DataError(f"{path}, line 1: must be {','.join(COLUMNS)}, but is {found}")
        for row in reader:
            _read_row(row, plans, points, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num}: {error}") from None


def _read_row(
    row: dict[str, Any], plans: set[str], points: dict[tuple[str, int], list[Point]], line: str
) -> None:
    """Check a row and add it to its curve.

    Args:
        row: Row of a DictReader.
        plans: The texts already checked; grows.
        points: Points of each curve so far; grows.
        line: Number of the row's line, for errors.
    """
    if None in row or None in row.values():
        raise DataError(f"{line}: must have {len(COLUMNS)} cells")
    plan_text = row["plan"]
    if plan_text not in plans:
        _check_plan(plan_text, f"{line}, column plan")
        plans.add(plan_text)
    curve = points.setdefault((plan_text, _whole_number(row, "seed", line)), [])
    point = Point(
        _whole_number(row, "num_updates", line),
        _number(row, "loss", line),
        _number(row, "seconds", line),
    )
    before = curve[-1] if curve else Point(0, math.nan, 0.0)
    if point.num_updates <= before.num_updates:
        raise DataError(
            f"{line}, column num_updates: must be above {before.num_updates}, as its curve is "
            f"there already, but is {point.num_updates}"
        )
    if not before.seconds <= point.seconds < math.inf:
        raise DataError(
            f"{line}, column seconds: must be finite and not below {before.seconds}, as its "
            f"curve is there already, but is {point.seconds}"
        )
    curve.append(point)


def _check_plan(text: str, place: str) -> None:
    """A text in another form would never be found."""
    try:
        canonical = AttentionPlan.from_json(json.loads(text)).dumps()
    except ValueError as error:
        raise DataError(f"{place}: is no plan: {error}") from None
    if canonical != text:
        raise DataError(f"{place}: must be written {canonical}, but is {text}")


def _whole_number(row: dict[str, Any], column: str, line: str) -> int:
    if re.fullmatch(r"-?\d{1,10}", row[column], re.ASCII) and abs(int(row[column])) <= MOST_UPDATES:
        return int(row[column])
    message = f"must be a whole number up to {MOST_UPDATES}, but is {row[column][:40]!r}"
    raise DataError(f"{line}, column {column}: {message}")


def _number(row: dict[str, Any], column: str, line: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        message = f"must be a number, but is {row[column]!r}"
        raise DataError(f"{line}, column {column}: {message}") from None
