"""What the reports of a trial's trainings say: what is new, what is wrong, and what came of it."""

from __future__ import annotations

import contextlib
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_attn.attention.pruning import Phase
from nas_attn.errors import TrialFileError
from nas_attn.trials.failures import Failure, FailureKind
from nas_attn.trials.job import SeedRun, TrialJob, TrialResult, Validation
from nas_attn.trials.layout import START, read_state
from nas_attn.trials.steps import Step, StepKind, decoding_seconds
from nas_attn.validation_log import REPORT_FILE, Report

SETTLED = Phase.SETTLED.name.lower()


class TrialReports:
    """The reports of a trial's trainings, each read again only when it has grown.

    Args:
        job: Job of the trial.
    """

    def __init__(self, job: TrialJob) -> None:
        self.job = job
        self._reports: dict[Path, Report] = {}
        self._reported: dict[Path, set[int]] = {}

    def lines(self, folder: Path) -> list[dict[str, Any]]:
        """The validations of a training so far."""
        return self._reports.setdefault(folder, Report(folder)).lines()

    def news(self, step: Step) -> list[Validation]:
        """The validations of a step's training that were not reported before."""
        if not step.trains:
            return []
        run, reported = step.run, self._reported.setdefault(step.report_folder, set())
        is_start = step.kind is StepKind.START
        news = []
        for count, line in enumerate(self.lines(step.report_folder), start=1):
            update = line["num_updates"]
            if update in reported or self.job.metric not in line["metrics"]:
                continue
            reported.add(update)
            news.append(
                Validation(
                    seed=run.seed,
                    num_updates=update,
                    loss=line["metrics"][self.job.metric],
                    validation=count,
                    settled=_is_settled(line),
                    seed_index=self.job.runs.index(run),
                    is_last=run == self.job.runs[-1] and self._is_at_end(line) and not is_start,
                    is_start=is_start,
                )
            )
        return news

    def not_finite(self, step: Step) -> Failure | None:
        """A loss that is no number does not heal, so one such validation is enough."""
        for line in self.lines(step.report_folder):
            loss = line["metrics"].get(self.job.metric, 0.0)
            if not math.isfinite(loss):
                message = f"the validation {self.job.metric} of seed {step.run.seed} is {loss}"
                return Failure(FailureKind.NOT_FINITE, message)
        return None

    def fault(self, step: Step) -> str | None:
        """What the report of a training that ended without an error lacks."""
        lines = self.lines(step.report_folder)
        if not lines:
            return f"{step.name} ended without a validation"
        phase = lines[-1].get("phase")
        if not _is_settled(lines[-1]):
            return (
                f"the training (seed {step.run.seed}) ended before the vote was over ({phase}): "
                "vote earlier or train longer"
            )
        if self.job.metric not in lines[-1]["metrics"]:
            known = ", ".join(sorted(lines[-1]["metrics"]))
            return f"fairseq logged no metric {self.job.metric!r}; it logged {known}"
        built = lines[-1]["parameters"].get("total")
        if built != self.job.parameters:
            return f"counted {self.job.parameters} parameters, but fairseq built {built}"
        return None

    def result(self) -> TrialResult:
        """What a trial whose steps are all finished has come to.

        Raises:
            TrialFileError: its files do not say.
        """
        runs = self.job.runs
        states = [read_state(Path(run.folder)) for run in runs]
        decoding = decoding_seconds(runs[0])
        measured = {"decoding_seconds": statistics.median(decoding)} if decoding else {}
        if self.job.figures:
            lines = self.lines(Path(runs[0].folder))
            last = lines[-1]["metrics"] if lines else {}
            for name in self.job.figures:
                if not math.isfinite(last.get(name, math.nan)):
                    raise TrialFileError(f"{runs[0].folder}/{REPORT_FILE} holds no {name}")
                measured[name] = last[name]
            known = ((name, last.get(name, math.nan)) for name in self.job.further_figures)
            measured |= {name: value for name, value in known if math.isfinite(value)}
        return replace(
            self.spent(),
            losses=tuple(self._best_loss(run) for run in runs),
            plans=tuple(state["plan"] for state in states if state.get("plan") is not None),
            measured=measured,
            memory=self._peak_memory(),
            tests=tuple(
                {**state.get("test_loss", {}), **state["test"]}
                for state in states
                if "test" in state
            ),
        )

    def spent(self) -> TrialResult:
        """Time and updates so far, earlier attempts included, without the process that runs now.

        What cannot be read is not counted.
        """
        updates, seconds = 0, 0.0
        for run in self.job.runs:
            folder = Path(run.folder)
            for reported in (folder, *((folder / START,) if run.is_trained_first else ())):
                with contextlib.suppress(OSError, TrialFileError):
                    lines = self.lines(reported)
                    updates += max((line["num_updates"] for line in lines), default=0)
            with contextlib.suppress(OSError, TrialFileError):
                seconds += read_state(Path(run.folder)).get("seconds", 0.0)
        return TrialResult(seconds=seconds, updates=updates)

    def _peak_memory(self) -> dict[str, float]:
        """The largest of all seeds, by what it is of."""
        peaks: dict[str, float] = {}
        for run in self.job.runs:
            for line in self.lines(Path(run.folder)):
                for kind, peak in line["memory"].items():
                    peaks[kind] = max(peaks.get(kind, 0.0), peak)
        return peaks

    def _is_at_end(self, line: dict[str, Any]) -> bool:
        epoch, updates = line.get("epoch") or 0, line["num_updates"]
        last_epoch, last_update = self.job.last_epoch, self.job.last_update
        return epoch >= (last_epoch or math.inf) or updates >= (last_update or math.inf)

    def _best_loss(self, run: SeedRun) -> float:
        """Of the model that is left: before pruning it was another one.

        Raises:
            TrialFileError: the report of a training that has ended does not say.
        """
        lines = [line for line in self.lines(Path(run.folder)) if _is_settled(line)]
        losses = [line["metrics"].get(self.job.metric, math.nan) for line in lines]
        finite: list[float] = [loss for loss in losses if math.isfinite(loss)]
        if not finite:
            raise TrialFileError(
                f"{run.folder}/{REPORT_FILE} holds no {self.job.metric}, but the training has ended"
            )
        return max(finite) if self.job.maximise else min(finite)


def _is_settled(line: dict[str, Any]) -> bool:
    return line.get("phase") in (None, SETTLED)
