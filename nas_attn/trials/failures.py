"""Why a trial ended without a result, and whether another attempt may do better.

The kind is read from an exit status, the kernel's counter of out-of-memory kills, the end of a log,
or an error of the operating system.
"""

from __future__ import annotations

import errno
import re
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nas_attn.errors import NasAttnError, TrialFileError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
SHOWN_LINES = 12
"""Lines of a log in a message."""
SHOWN_WIDTH = 400
"""Characters of such a line on average, at most; a log may be one line without end."""
TELLING_LINES = 50
"""Lines at a log's end that say why a process failed; earlier ones may be about harmless things."""

CHAINED = "During handling of the above exception, another exception occurred:"
LOGGED = " | INFO | "
TRACEBACK = "Traceback (most recent call last):"


class FailureKind(StrEnum):
    """Why a trial ended without a result."""

    OUT_OF_MEMORY = "out_of_memory"
    KILLED = "killed"
    NOT_FINITE = "not_finite"
    HUNG = "hung"
    DISK_FULL = "disk_full"
    WORKER_LOST = "worker_lost"
    NO_DATA = "no_data"
    NO_CHECKPOINT = "no_checkpoint"
    UNREADABLE = "unreadable_files"
    DAMAGED = "damaged_files"
    TRAINING = "training_error"
    INTERNAL = "internal_error"

    @property
    def can_retry(self) -> bool:
        """Whether the same trial may work another time or elsewhere."""
        return self not in (
            FailureKind.NOT_FINITE,
            FailureKind.DAMAGED,
            FailureKind.TRAINING,
            FailureKind.INTERNAL,
        )


@dataclass(frozen=True)
class Failure:
    """A kind and a message for people.

    Args:
        kind: Kind.
        message: What happened, in words.
        host_memory: Whether the memory that ran out was the machine's, not a GPU's.
    """

    kind: FailureKind
    message: str
    host_memory: bool = False


HOST_MEMORY = re.compile(
    r"Cannot allocate memory|MemoryError|DefaultCPUAllocator: (can't allocate|not enough) memory"
)
"""What the end of a log says where the machine's memory ran out; a GPU's signs come before."""
SIGNS: tuple[tuple[FailureKind, re.Pattern[str]], ...] = (
    (FailureKind.DISK_FULL, re.compile(r"No space left on device|Disk quota exceeded")),
    (
        FailureKind.OUT_OF_MEMORY,
        re.compile(
            r"\b(CUDA|Cuda|cuda|HIP)\b[^\n]*\bout of memory|OutOfMemoryError"
            r"|\bCU[A-Z]+_(STATUS|ERROR)_(\w*ALLOC(ATION)?_FAILED|OUT_OF_MEMORY)"
            r"|cuDNN[^\n]*not enough (\w+ )?memory"
        ),
    ),
    (FailureKind.OUT_OF_MEMORY, HOST_MEMORY),
    # torch does not say why a checkpoint could not be written; it hardly ever is anything else.
    (FailureKind.DISK_FULL, re.compile(r"PytorchStreamWriter failed")),
    (
        FailureKind.NOT_FINITE,
        re.compile(
            r"FloatingPointError: .*(minimum loss scale reached|\bnan\b|\binf\b)",
            re.IGNORECASE,
        ),
    ),
    # A process of several, killed, ends the one that started it with an error.
    (
        FailureKind.KILLED,
        re.compile(r"is killed by signal: Killed|terminated with signal SIGKILL"),
    ),
)
"""What the end of a log says of each kind; the first that is found counts."""


def failure_after(name: str, code: int, log: str, *, oom_killed: bool) -> Failure:
    """The failure of a process that ended on its own.

    Args:
        name: Name of the process, for the message.
        code: Exit status, not 0; the negative number of a signal that killed it.
        log: Text that it printed, its end at least.
        oom_killed: The kernel killed something for memory while the process ran.
    """
    if code < 0:
        message = f"{name} was killed by {_signal_name(-code)}"
        if code != -signal.SIGKILL:
            if code == -signal.SIGABRT:
                return _failure_of_abort(message, log)
            return Failure(FailureKind.KILLED, message)
        if oom_killed:
            message += ": the kernel's out-of-memory killer was at work in this control group"
            return Failure(FailureKind.OUT_OF_MEMORY, message, host_memory=True)
        message += " (the kernel's out-of-memory killer may be the cause)"
        return Failure(FailureKind.KILLED, message)
    kind, sign = _told_by(log)
    host_memory = sign is HOST_MEMORY
    if kind is FailureKind.KILLED and oom_killed:
        kind, host_memory = FailureKind.OUT_OF_MEMORY, True
    cause = _cause(log)
    if kind is FailureKind.NOT_FINITE and cause:
        return Failure(kind, f"{name} ended with status {code}: {cause}")
    message = f"{name} ended with status {code}:\n{last_lines(log)}"
    return Failure(kind, message, host_memory=host_memory)


def _failure_of_abort(message: str, log: str) -> Failure:
    """The failure of a process that aborted.

    One whose error ends it while a thread still reads batches may abort as Python shuts down: then
    the error counts. C++ aborts by itself, too, where nobody catches what it raises.
    """
    kind, sign = _told_by(log)
    if kind is FailureKind.TRAINING and TRACEBACK not in last_lines(log, TELLING_LINES):
        kind = FailureKind.KILLED
    if log.strip():
        message += f":\n{last_lines(log)}"
    return Failure(kind, message, host_memory=sign is HOST_MEMORY)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def kind_of_log(log: str) -> FailureKind:
    """The kind that the end of a log shows, `TRAINING` if none in particular."""
    return _told_by(log)[0]


def _told_by(log: str) -> tuple[FailureKind, re.Pattern[str] | None]:
    """The kind that the end of a log shows, and the sign that shows it."""
    telling = f"{_cause(log)}\n{last_lines(log, TELLING_LINES)}"
    found = ((kind, sign) for kind, sign in SIGNS if sign.search(telling))
    return next(found, (FailureKind.TRAINING, None))


def _cause(log: str) -> str:
    """The exception while handling which the last one was raised; empty if there was none.

    fairseq looks for what made a gradient infinite, and itself fails at that with a long traceback.
    """
    before, _, after = log.rpartition(f"\n\n{CHAINED}")
    return "" if LOGGED in after else last_lines(before, 1)


def kind_of_error(error: Exception) -> FailureKind | None:
    """The kind of an error of our own code that another machine or time may spare us, or None."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK_FULL
    if isinstance(error, MemoryError):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return FailureKind.OUT_OF_MEMORY
    # torch.save: a full disk is a RuntimeError.
    if isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error):
        return FailureKind.DISK_FULL
    return None


def failure_of_error(error: Exception, where: str) -> Failure:
    """The failure of a trial that an error of our own code has ended.

    Args:
        error: Error of any kind.
        where: The trial and its machine, for the message.
    """
    cause = error.__cause__ if isinstance(error, TrialFileError) else error
    kind = kind_of_error(cause) if isinstance(cause, Exception) else None
    if kind is None and isinstance(cause, OSError):
        kind = FailureKind.UNREADABLE
    elif kind is None and isinstance(error, TrialFileError):
        kind = FailureKind.DAMAGED
    elif kind is None and isinstance(error, NasAttnError):
        kind = FailureKind.TRAINING
    if kind is None:
        message = f"{where}: an error of nas-attn itself, {type(error).__name__}: {error}"
        return Failure(FailureKind.INTERNAL, message)
    # Errors of our own code never are of a GPU.
    host_memory = kind is FailureKind.OUT_OF_MEMORY
    return Failure(kind, f"{where}: {error}", host_memory=host_memory)


def last_lines(text: str, lines: int = SHOWN_LINES) -> str:
    """The end of a text, without blank lines after it."""
    return "\n".join(text.rstrip()[-SHOWN_WIDTH * lines :].splitlines()[-lines:])


def count_oom_kills(own: Path = OWN_CGROUPS, cgroups: Path = CGROUPS) -> int | None:
    """How many processes of our control group the kernel has killed for memory; None if unknown.

    Args:
        own: File that names the control groups of this process.
        cgroups: Folder in which the kernel shows control groups, version 1 or 2.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            folder, name = cgroups / "memory", "memory.oom_control"
        elif controllers == "":
            folder, name = cgroups, "memory.events"
        else:
            continue
        # A container may see its own group as the root, under another path than the one it reads.
        for candidate in (folder / path.lstrip("/") / name, folder / name):
            count = _oom_kills_in(candidate)
            if count is not None:
                return count
    return None


def _oom_kills_in(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None
