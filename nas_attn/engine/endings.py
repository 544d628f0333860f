"""Why a search ends before its budget is spent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import TrialJob
from nas_attn.trials.layout import CALIBRATION_FILE, COMMANDS_FILE, START, fault_of_start


class FailuresInARow:
    """Counts failed trials until one is a success or a stop.

    Args:
        most: Number of failures that end the search.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kinds: list[str] = []

    def clear(self) -> None:
        """A trial has come to something."""
        self._kinds.clear()

    def add(self, trial: TrialRecord, kind: FailureKind, error: str) -> str | None:
        """Count a failure; returns why the search ends, if it does."""
        self._kinds.append(str(kind))
        if trial.is_baseline:
            return (
                f"the baseline (trial {trial.number}) failed, so nothing could be compared with "
                f"it: {error}"
            )
        if len(self._kinds) < self.most:
            return None
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(self._kinds).most_common())
        return (
            f"{len(self._kinds)} trials in a row failed ({kinds}), so the search ends "
            f"before it wastes more; the last one (trial {trial.number}): {error}"
        )


def missing_start(job: TrialJob) -> str | None:
    """Which file that trials start from is of no use, in words: they would all fail, one after the
    other; None if all are there."""
    for path in map(Path, job.needs):
        fault = fault_of_start(path)
        if fault is not None:
            return (
                f"{path}, which trials start from, {fault}, so none was begun; put it back"
                f"{_how_made(path)}, and the same command goes on"
            )
    return None


def _how_made(path: Path) -> str:
    """How a file that trials start from is made again, as far as that is known."""
    commands = path.parent.parent.parent / COMMANDS_FILE
    if path.parent.name == START and commands.is_file():
        return (
            f", or train the baseline again (remove the checkpoints of {path.parent}, and run the "
            f"line of {commands} that trains into it)"
        )
    if path.name == CALIBRATION_FILE:
        return ", or remove what is there, as it is made again"
    return ""
