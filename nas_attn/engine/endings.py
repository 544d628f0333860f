"""Why a search ends before its budget is spent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import TrialJob, TrialResult
from nas_attn.trials.layout import (
    CALIBRATION_FILE,
    CHECKPOINTS,
    COMMANDS_FILE,
    START,
    fault_of_start,
)


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


MEMORY, MACHINE = "memory", "machine"
"""Which memory an attempt lacked, on record; records of old do not say it, and a GPU's is not
marked."""


def attempt_entry(result: TrialResult, gpus: str | None) -> dict[str, str]:
    """An attempt that came to nothing, as a record keeps it.

    Args:
        result: How it ended.
        gpus: GPUs that the trial had; None or empty for none.
    """
    entry = {"failure": str(result.failure), "reason": result.error or ""}
    if result.failure is FailureKind.OUT_OF_MEMORY and (result.host_memory or not gpus):
        entry[MEMORY] = MACHINE
    return entry


def ran_out_of_memory(trial: TrialRecord, *, of_machine: bool) -> bool:
    """Whether an earlier attempt at a trial did, so that it is to be alone.

    Args:
        trial: Trial that is continued or ends.
        of_machine: Whether the machine's memory is meant, or that of the trial's GPUs.
    """
    return any(
        attempt["failure"] == FailureKind.OUT_OF_MEMORY
        and (attempt.get(MEMORY) == MACHINE) == of_machine
        for attempt in trial.attempts
    )


def memory_advice(gpus: str | None, *, alone: bool, others: int = 0) -> str:
    """What to do about a trial that ran out of memory, in words.

    Args:
        gpus: GPUs whose memory it was; None if it was the machine's.
        alone: Whether this driver had no other trial on them, or on the machine.
        others: Number of trials of other drivers that were running.
    """
    if others:
        of_others = (
            f"{_memory_advice(gpus, alone=False)}; other drivers have {others} trials running, of "
            "which this driver does not know whether they are on "
        )
        if gpus is None:
            return of_others + "this machine too"
        return of_others + "that GPU too: give each driver its own CUDA_VISIBLE_DEVICES"
    return _memory_advice(gpus, alone=alone)


def _memory_advice(gpus: str | None, *, alone: bool) -> str:
    if gpus is None:
        where = "alone, too, it" if alone else "it"
        return (
            f"{where} needs more memory than there is: run fewer trials at a time "
            "(execution.workers), lower max-tokens, or take a machine with more"
        )
    where = "with no other trial on the GPU, too, it" if alone else "it"
    return (
        f"{where} needs more memory than GPU {gpus} has: lower max-tokens and raise update-freq by "
        "as much, take a larger GPU, or let fewer trials share one (resources.gpus)"
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
    trial = {START: "the baseline", CHECKPOINTS: "that trial"}.get(path.parent.name)
    if trial is not None and commands.is_file():
        return (
            f", or train {trial} again (remove the checkpoints of {path.parent}, and run the "
            f"line of {commands} that trains into it)"
        )
    if path.name == CALIBRATION_FILE:
        return ", or remove what is there, as it is made again"
    return ""
