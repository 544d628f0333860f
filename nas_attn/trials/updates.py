"""How far a training is, as its log says: it reports validations alone, which may be far apart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_attn.errors import TrialFileError
from nas_attn.trials.layout import LOG_FILE, START, START_LOG_FILE
from nas_attn.trials.scores import end_of_log


@dataclass(frozen=True)
class Updates:
    """Updates of a training so far.

    Args:
        done: Updates that the log speaks of.
        total: Updates in all, as epochs so far suggest; None where that is not known.
        seed: Seed of the training; None where its command names none.
    """

    done: int
    total: int | None
    seed: int | None = None

    @property
    def text(self) -> str:
        """Such as `400 of 798`."""
        return f"{self.done:,}" + (f" of {self.total:,}" if self.total else "")


def read_updates(command: Sequence[str], log: Path, after: int = 0) -> Updates | None:
    """Read how far a training is; None as long as its log does not say.

    Args:
        command: The fairseq-train command.
        log: What it prints.
        after: Bytes at the beginning of the log that belong to others.
    """
    try:
        text = end_of_log(log, after)
    except TrialFileError:
        return None
    found = re.findall(r"\bnum_updates[= ](\d+)", text)
    if not found:
        return None
    done = int(found[-1])
    totals = [int(most) for most in [_value(command, "--max-update")] if most.isdigit()]
    epochs, sizes = _value(command, "--max-epoch"), re.findall(r"epoch \d+: +\d+ / (\d+) ", text)
    if sizes and epochs.isdigit():
        totals.append(int(epochs) * int(sizes[-1]))
    total, seed = max(done, min(totals)) if any(totals) else None, _value(command, "--seed")
    return Updates(done, total, int(seed) if seed.isdigit() else None)


def latest_updates(commands: Sequence[Sequence[str]]) -> Updates | None:
    """How far that one of a trial's trainings is whose log was written to last.

    Args:
        commands: Its commands, those included that make what trainings start from.
    """
    logs = []
    for command in commands:
        saved = Path(_value(command, "--save-dir"))
        if not saved.name:
            continue  # what converts a model does not train
        log = saved.parent / (START_LOG_FILE if saved.name == START else LOG_FILE)
        with contextlib.suppress(OSError, ValueError):
            logs.append((log.stat().st_mtime, log, command))
    if not logs:
        return None
    _, log, command = max(logs, key=lambda found: found[0])
    return read_updates(command, log)


def _value(command: Sequence[str], flag: str) -> str:
    """The value of a flag, given as one argument or two; empty if it is not there."""
    for place, part in enumerate(command):
        if part == flag:
            return "".join(command[place + 1 : place + 2])
        if part.startswith(f"{flag}="):
            return part.removeprefix(f"{flag}=")
    return ""
