"""Make a damaged journal readable again, and lose no more of it than was lost already.

A journal gives no numbers: the third creation is trial 2, whoever wrote it. So where a creation is
damaged, a failed trial without a plan is put in its place, or all later trials would be taken for
others. How many creations a damaged place held shows in what comes after it: operations name trials
by number, and our creations say which number they were proposed for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.trial import TrialState

from nas_attn.engine.journal import WholeLines, keep_damaged, parse_line, side_file
from nas_attn.engine.leases import held_drivers, live_drivers
from nas_attn.errors import SearchError

CREATE_STUDY, DELETE_STUDY, CREATE_TRIAL = 0, 1, 4
MOST_LOST = 20
"""Creations that one damaged place is thought to have held at most."""
LOST = "this trial's line of the record was damaged; nas-attn repair put this one in its place"
WORKER = "nas-attn repair"
_BEGINNING = b'{"op_code":'


@dataclass(frozen=True)
class Piece:
    """A part of a journal: an operation, or a damaged place.

    Args:
        line: Number of the line, from 1.
        content: The bytes, without the line's end.
        log: The operation; None if it is damaged.
        reason: Reason why it cannot be read.
    """

    line: int
    content: bytes
    log: dict[str, Any] | None = None
    reason: str = ""


@dataclass
class Repair:
    """What became of a journal.

    Args:
        lines: Number of lines of the new journal.
        kept: Operations that stay.
        dropped: Pieces that were taken out.
        placeholders: Trials that were put in place of lost ones, as study and number.
        studies: Names of studies whose creation was lost.
        metadata: Metadata of the studies, what drivers reported of themselves included.
        backup: Path of the copy of the journal as it was; None if nothing was wrong.
    """

    lines: list[bytes] = field(default_factory=list)
    kept: int = 0
    dropped: list[Piece] = field(default_factory=list)
    placeholders: list[tuple[str, int]] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    backup: Path | None = None


def repair_journal(
    path: Path, study: str, directions: Sequence[int], *, grace_seconds: float
) -> Repair:
    """Write a journal again without what is damaged.

    The journal as it was is kept beside it, and what was dropped in a side file.

    Args:
        path: Path of the journal.
        study: Name of its main study, in case that its very creation is damaged.
        directions: Directions of its objectives, as Optuna numbers them.
        grace_seconds: Seconds that a driver on another machine may be silent.

    Raises:
        SearchError: the file is no journal, or a driver lives.
        OSError: there is no room.
    """
    at_work = held_drivers(path.parent)
    if at_work:
        raise SearchError(_at_work(at_work))
    with WholeLines(path).locked():
        repair = _rebuild(list(_pieces(path)), study, directions)
        if repair.kept == 0:
            raise SearchError(f"{path} is no journal of a search: no operation of Optuna is in it")
        at_work = live_drivers(repair.metadata, now=time.time(), grace_seconds=grace_seconds)
        if at_work:
            raise SearchError(_at_work(at_work))
        if not repair.dropped:
            return repair
        now = datetime.now().astimezone().strftime("%Y%m%dT%H%M%S")
        repair.backup = path.with_name(f"{path.name}.before-repair-{now}")
        shutil.copy2(path, repair.backup)
        for piece in repair.dropped:
            keep_damaged(path, piece.line, piece.content, piece.reason)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            file.writelines(repair.lines)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, partial)
        partial.replace(path)
    return repair


def _at_work(drivers: Sequence[str]) -> str:
    return (
        f"the driver {', '.join(drivers)} is at work on this record; end it before the repair (on "
        "another machine it counts as ended after execution.grace_seconds of silence)"
    )


def describe(repair: Repair, path: Path) -> list[str]:
    """What was done, in lines for people."""
    if repair.backup is None:
        return [f"{path} is whole: {repair.kept} operations, nothing to repair"]
    said = [
        f"{path}: {repair.kept} operations stay, {len(repair.dropped)} are dropped",
        *(f"  line {piece.line}: {piece.reason}" for piece in repair.dropped[:20]),
    ]
    if len(repair.dropped) > 20:
        said.append(f"  and {len(repair.dropped) - 20} more")
    said += [f"the creation of the study {name!r} was lost and is there again"
             for name in repair.studies]  # fmt: skip
    said += [
        f"trial {number} of {name} was lost: a failed one without a plan is in its place, so that "
        "the others keep their numbers; the search trains another one for it"
        for name, number in repair.placeholders
    ]
    said.append(f"dropped lines: {side_file(path)}")
    said.append(f"the record as it was: {repair.backup}")
    return said


def _pieces(path: Path) -> Iterator[Piece]:
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            try:
                yield Piece(number, content.rstrip(b"\n"), parse_line(content))
            except ValueError as error:
                yield from _salvage(number, content.rstrip(b"\n"), str(error))


def _salvage(number: int, content: bytes, reason: str) -> Iterator[Piece]:
    """The whole operations within a damaged line: another one may have been written behind it."""
    lost = 0
    at = content.find(_BEGINNING)
    while at >= 0:
        following = content.find(_BEGINNING, at + 1)
        # Within text a quotation mark is escaped, so an operation begins nowhere else.
        part = content[at : len(content) if following < 0 else following]
        length = _whole_length(part)
        if length:
            if content[lost:at]:
                yield Piece(number, content[lost:at], None, reason)
            yield Piece(number, part[:length], parse_line(part[:length] + b"\n"))
            lost = at + length
        at = following
    if content[lost:]:
        yield Piece(number, content[lost:], None, reason)


def _whole_length(part: bytes) -> int:
    """How long the operation is with which a text begins; 0 if there is none."""
    try:
        _, length = json.JSONDecoder().raw_decode(part.decode("latin-1"))
        parse_line(part[:length] + b"\n")
    except (ValueError, RecursionError):
        return 0
    return length


class _Numbers:
    """How Optuna numbers what a journal creates."""

    def __init__(self) -> None:
        self.studies: list[str] = []
        self.deleted: set[int] = set()
        self.trials: list[int] = []
        """The study of each trial."""
        self.finished: set[int] = set()

    def copy(self) -> _Numbers:
        other = _Numbers()
        other.studies, other.deleted = list(self.studies), set(self.deleted)
        other.trials, other.finished = list(self.trials), set(self.finished)
        return other

    def exists(self, study: int) -> bool:
        return study < len(self.studies) and study not in self.deleted

    def apply(self, log: dict[str, Any]) -> None:
        code = log["op_code"]
        if code == CREATE_STUDY:
            live = [n for i, n in enumerate(self.studies) if i not in self.deleted]
            if log["study_name"] not in live:
                self.studies.append(log["study_name"])
        elif code == DELETE_STUDY:
            self.deleted.add(log["study_id"])
        elif code == CREATE_TRIAL and self.exists(log["study_id"]):
            if TrialState(log.get("state", TrialState.RUNNING)).is_finished():
                self.finished.add(len(self.trials))
            self.trials.append(log["study_id"])
        elif code == 6 and TrialState(log["state"]).is_finished():
            self.finished.add(log["trial_id"])


def _rebuild(pieces: Sequence[Piece], study: str, directions: Sequence[int]) -> Repair:
    repair, numbers = Repair(), _Numbers()
    replay = JournalStorageReplayResult("")
    lost: set[int] = set()

    def write(log: dict[str, Any], content: bytes) -> None:
        replay.apply_logs([log])
        numbers.apply(log)
        repair.lines.append(content + b"\n")

    def put(log: dict[str, Any]) -> None:
        write(log, json.dumps(log, separators=(",", ":")).encode())

    def take_out(piece: Piece, rest: Sequence[dict[str, Any]]) -> None:
        repair.dropped.append(piece)
        for name in _lost_studies(numbers, piece, rest, study):
            put(_new_study(name, directions))
            repair.studies.append(name)
        for owner in _lost_trials(numbers, piece, rest):
            repair.placeholders.append((numbers.studies[owner], numbers.trials.count(owner)))
            lost.add(len(numbers.trials))
            put(_new_trial(owner))

    for index, piece in enumerate(pieces):
        if piece.log is None:
            take_out(piece, _until_damaged(pieces, index + 1))
        elif piece.log.get("trial_id") in lost:
            reason = "it is about a trial that was lost"
            repair.dropped.append(replace(piece, reason=reason))
        else:
            try:
                write(piece.log, piece.content)
                repair.kept += 1
            except Exception as error:  # whatever Optuna makes of what it cannot apply
                reason = f"Optuna cannot apply it ({type(error).__name__}: {error})"
                take_out(replace(piece, reason=reason), _until_damaged(pieces, index + 1))
    repair.metadata = {
        name: value
        for found in replay.get_all_studies()
        for name, value in found.user_attrs.items()
    }
    return repair


def _until_damaged(pieces: Sequence[Piece], start: int) -> list[dict[str, Any]]:
    """The operations up to the next damaged place."""
    found = []
    for piece in pieces[start:]:
        if piece.log is None:
            break
        found.append(piece.log)
    return found


def _lost_studies(
    numbers: _Numbers, piece: Piece, rest: Sequence[dict[str, Any]], study: str
) -> list[str]:
    """Names of studies that a damaged place created, as operations after it name them."""
    written = re.search(rb'"study_name":"([^"\\]+)"', piece.content)
    likely = [study, *([written[1].decode("latin-1")] if written else [])]
    # A study is created again at every start, which Optuna passes over.
    likely += [log["study_name"] for log in rest if log["op_code"] == CREATE_STUDY]
    names: list[str] = []
    is_first = _code(piece.content) == CREATE_STUDY and not numbers.studies
    while len(names) < MOST_LOST and (_unknown(numbers, names, rest) or (is_first and not names)):
        new = [name for name in dict.fromkeys(likely) if name not in [*numbers.studies, *names]]
        new.append(f"{study} (lost {len(names) + 1})")
        names.append(min(new, key=lambda name: _unknown(numbers, [*names, name], rest)))
    return names


def _unknown(numbers: _Numbers, names: Sequence[str], rest: Sequence[dict[str, Any]]) -> int:
    """How many operations would be about a study that is not there."""
    trial, found = numbers.copy(), 0
    trial.studies += names
    for log in rest:
        found += log.get("study_id", -1) >= len(trial.studies)
        if log["op_code"] in (CREATE_STUDY, DELETE_STUDY):
            trial.apply(log)
    return found


def _lost_trials(numbers: _Numbers, piece: Piece, rest: Sequence[dict[str, Any]]) -> list[int]:
    """The study of each trial that a damaged place created."""
    # What our creations say of their own numbers.
    owners = list(_missing_numbers(numbers, rest).elements())
    # What operations say of trials: the fewest more that agree with most of them.
    best, fewest = owners, _contradictions(numbers, owners, rest)
    for more in range(1, MOST_LOST + 1):
        for study in _likely_studies(numbers, piece, rest):
            if fewest == 0:
                return best
            longer = [*owners, *[study] * more]
            found = _contradictions(numbers, longer, rest)
            if found < fewest:
                best, fewest = longer, found
    return best


def _missing_numbers(numbers: _Numbers, rest: Sequence[dict[str, Any]]) -> Counter[int]:
    trial, missing = numbers.copy(), Counter[int]()
    counts = Counter(numbers.trials)
    for log in rest:
        if log["op_code"] == CREATE_TRIAL and trial.exists(log["study_id"]):
            study = log["study_id"]
            proposal = log.get("user_attrs", {}).get("proposal")
            if isinstance(proposal, dict) and isinstance(proposal.get("number"), int):
                ahead = proposal["number"] - counts[study]
                missing[study] = max(missing[study], min(ahead, MOST_LOST))
            counts[study] += 1
        elif log["op_code"] in (CREATE_STUDY, DELETE_STUDY):
            trial.apply(log)
    return +missing


def _contradictions(
    numbers: _Numbers, owners: Sequence[int], rest: Sequence[dict[str, Any]]
) -> int:
    """How many operations would be about a trial that is not there, or that was over."""
    trial = numbers.copy()
    placed = range(len(trial.trials), len(trial.trials) + len(owners))
    trial.trials += owners
    counts = Counter(trial.trials)
    found = 0
    for log in rest:
        number = log.get("trial_id")
        if number is not None and number not in placed:
            found += number >= len(trial.trials) or number in trial.finished
        if log["op_code"] == CREATE_TRIAL and trial.exists(log["study_id"]):
            proposal = log.get("user_attrs", {}).get("proposal")
            if isinstance(proposal, dict):
                found += proposal.get("number") != counts[log["study_id"]]
            counts[log["study_id"]] += 1
        trial.apply(log)
    return found


def _likely_studies(numbers: _Numbers, piece: Piece, rest: Sequence[dict[str, Any]]) -> list[int]:
    """The studies in which a trial may have been created, the likeliest first."""
    likely = [_said_study(piece.content)]
    likely += [log["study_id"] for log in rest if log["op_code"] == CREATE_TRIAL][:1]
    likely += [*numbers.trials[-1:], *range(len(numbers.studies))]
    known = [study for study in likely if study is not None and numbers.exists(study)]
    return list(dict.fromkeys(known))


def _code(content: bytes) -> int | None:
    found = re.match(rb'\{"op_code":(\d+),', content)
    return int(found[1]) if found else None


def _said_study(content: bytes) -> int | None:
    """The study of which a damaged line says that it created a trial."""
    found = re.search(rb'"study_id":(\d+)[,}]', content)
    return int(found[1]) if found and _code(content) == CREATE_TRIAL else None


def _new_study(name: str, directions: Sequence[int]) -> dict[str, Any]:
    return {
        "op_code": CREATE_STUDY,
        "worker_id": WORKER,
        "study_name": name,
        "directions": list(directions),
    }


def _new_trial(study: int) -> dict[str, Any]:
    now = datetime.now().astimezone().isoformat(timespec="microseconds")
    return {
        "op_code": CREATE_TRIAL,
        "worker_id": WORKER,
        "study_id": study,
        "datetime_start": now,
        "datetime_complete": now,
        "state": int(TrialState.FAIL),
        "value": None,
        "values": None,
        "distributions": {},
        "params": {},
        "user_attrs": {"reason": LOST},
        "system_attrs": {},
        "intermediate_values": {},
    }
