"""Run one trial: a fairseq-train sub-process for each of its seeds, one after the other.

`TrialRun` never blocks: an executor polls it. What a training says is read from the report file
that the plugin's task appends to, so a training that is continued keeps what it reported before.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from nas_attn.attention.pruning import Phase
from nas_attn.errors import NasAttnError
from nas_attn.training.arguments import shell_text
from nas_attn.training.pruning import prune_checkpoint

logger = logging.getLogger(__name__)

REPORT_FILE = "report.jsonl"
LOG_FILE = "train.log"
STATE_FILE = "finished.json"
LOCK_FILE = "training.lock"
CHECKPOINTS = "checkpoints"
LAST, BEST, PRUNED = "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_pruned.pt"
SETTLED = Phase.SETTLED.name.lower()
STOP_GRACE_SECONDS = 5.0
LOG_TAIL_LINES = 12


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One training of a trial."""

    seed: int
    folder: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """All that is needed to run a trial, on this machine or another.

    Args:
        number: the trial's number in the record.
        folder: where it keeps plan, commands, logs and checkpoints.
        metric: name of the validation metric, lower is better.
        parameters: total parameters that the model must turn out to have.
        runs: one training for each seed.
        threads: CPU threads of a training.
    """

    number: int
    folder: str
    metric: str
    parameters: int
    runs: tuple[SeedRun, ...]
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrialJob:
        runs = tuple(SeedRun(**{**run, "command": tuple(run["command"])}) for run in data["runs"])
        return cls(**{**data, "runs": runs})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One validation of a running trial."""

    seed: int
    num_updates: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended.

    Args:
        losses: the best validation loss of each seed, in the order of the job's runs; after
            pruning, if there is any.
        plans: what pruning made of the plan, for each seed; empty if the plan prunes nothing.
        seconds: time spent training, all seeds and earlier attempts included.
        error: why there is no result; None if there is one.
    """

    losses: tuple[float, ...] = ()
    plans: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    error: str | None = None

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)


@dataclass
class TrialRun:
    """A trial in progress.

    Args:
        job: what to run.
        device: value of CUDA_VISIBLE_DEVICES for the trainings; None leaves it as it is.
    """

    job: TrialJob
    device: str | None = None
    result: TrialResult | None = None
    _process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = None
    _current: int = 0
    _started: float = 0.0
    _reported: set[tuple[int, int]] = field(default_factory=set)

    def poll(self) -> list[Progress]:
        """Move on as far as possible without waiting; returns the validations since last time."""
        if self.result is not None:
            return []
        if self._process is None:
            self._start_next()
            return []
        run = self.job.runs[self._current]
        code = self._process.poll()
        news = self._news(run)
        if code is None:
            return news
        seconds = time.monotonic() - self._started
        self._close()
        error = self._error_after(run, code)
        if error is not None:
            self.result = TrialResult(seconds=self._seconds_before() + seconds, error=error)
            return news
        state: dict[str, Any] = {"seconds": seconds + _spent(run), "finished": True}
        if read_report(Path(run.folder))[-1].get("phase") is not None:
            try:
                state["plan"] = _prune(Path(run.folder))
            except NasAttnError as failure:
                self.result = TrialResult(
                    seconds=self._seconds_before() + seconds, error=str(failure)
                )
                return news
        _write_json(Path(run.folder) / STATE_FILE, state)
        self._current += 1
        self._start_next()
        return news

    def stop(self) -> None:
        """End the training that is running; what it saved stays, so the trial can continue."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        run = self.job.runs[self._current]
        seconds = time.monotonic() - self._started + _spent(run)
        _write_json(Path(run.folder) / STATE_FILE, {"seconds": seconds, "finished": False})
        self._close()

    def _start_next(self) -> None:
        runs = self.job.runs
        while self._current < len(runs) and _is_finished(runs[self._current]):
            self._current += 1
        if self._current == len(runs):
            losses = tuple(_best_loss(run, self.job.metric) for run in runs)
            plans = tuple(plan for run in runs if (plan := _state(run).get("plan")) is not None)
            self.result = TrialResult(losses=losses, plans=plans, seconds=self._seconds_before())
            return
        run = runs[self._current]
        folder = Path(run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / LOCK_FILE)
        if lock is None:
            return  # what an earlier driver left is about to die; poll again
        _repair_checkpoints(folder / CHECKPOINTS)
        environment = {
            **os.environ,
            "NAS_ATTN_REPORT": str(folder / REPORT_FILE),
            "OMP_NUM_THREADS": str(self.job.threads),
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
        if self.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.device
        self._log = (folder / LOG_FILE).open("ab")
        self._started = time.monotonic()
        guard = [sys.executable, "-S", str(Path(__file__).with_name("guard.py")), str(os.getpid())]
        self._process = subprocess.Popen(
            [*guard, *executable_form(run.command)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches the driver alone, which then stops its trainings in order.
            process_group=0,
            pass_fds=(lock.fileno(),),
        )
        lock.close()  # held on by the training alone

    def _close(self) -> None:
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _news(self, run: SeedRun) -> list[Progress]:
        news = []
        for line in read_report(Path(run.folder)):
            key = (run.seed, line["num_updates"])
            if key not in self._reported and self.job.metric in line["metrics"]:
                self._reported.add(key)
                loss = line["metrics"][self.job.metric]
                news.append(Progress(seed=run.seed, num_updates=line["num_updates"], loss=loss))
        return news

    def _error_after(self, run: SeedRun, code: int) -> str | None:
        folder = Path(run.folder)
        if code < 0:
            return f"fairseq-train (seed {run.seed}) was killed by {signal.Signals(-code).name}"
        if code != 0:
            return f"fairseq-train (seed {run.seed}) ended with status {code}:\n" + log_tail(
                folder / LOG_FILE
            )
        lines = read_report(folder)
        if not lines:
            return f"fairseq-train (seed {run.seed}) ended without a validation"
        phase = lines[-1].get("phase")
        if phase not in (None, SETTLED):
            return (
                f"the training (seed {run.seed}) ended before the vote was over ({phase}): vote "
                "earlier or train longer"
            )
        if self.job.metric not in lines[-1]["metrics"]:
            known = ", ".join(sorted(lines[-1]["metrics"]))
            return f"fairseq logged no metric {self.job.metric!r}; it logged {known}"
        loss = _best_loss(run, self.job.metric)
        if not math.isfinite(loss):
            return f"the validation {self.job.metric} of seed {run.seed} is {loss}"
        built = lines[-1]["parameters"]["total"]
        if built != self.job.parameters:
            return f"counted {self.job.parameters} parameters, but fairseq built {built}"
        return None

    def _seconds_before(self) -> float:
        return sum(_spent(run) for run in self.job.runs)


def executable_form(command: tuple[str, ...]) -> list[str]:
    """`fairseq-train ...` as run by this very Python, whatever PATH says."""
    module = {"fairseq-train": "fairseq_cli.train"}[command[0]]
    return [sys.executable, "-m", module, *command[1:]]


def write_trial_files(job: TrialJob, plan: dict[str, Any]) -> None:
    """Keep a trial's plan and commands in its folder, for people."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "plan.json", plan)
    commands = "".join(shell_text(run.command, job.threads) + "\n" for run in job.runs)
    (folder / "commands.sh").write_text(commands, encoding="utf-8")


def read_report(folder: Path) -> list[dict[str, Any]]:
    """The validations of one training in the order of updates; repeated ones once, the last.

    A training that was continued may validate again what it had validated before it stopped, and
    a killed one may leave half a line.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        return []
    by_update: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            by_update[line["num_updates"]] = line
        except (ValueError, KeyError):
            continue
    return [by_update[update] for update in sorted(by_update)]


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.rstrip().splitlines()[-lines:])


def best_checkpoint(run_folder: Path) -> Path:
    """Where a training keeps the checkpoint of its best validation, pruned if it is."""
    pruned = run_folder / CHECKPOINTS / PRUNED
    return pruned if pruned.is_file() else run_folder / CHECKPOINTS / BEST


def _prune(run_folder: Path) -> dict[str, Any]:
    """Cut what was masked out of the best checkpoint; returns the plan of what is left."""
    folder = run_folder / CHECKPOINTS
    return prune_checkpoint(folder / BEST, folder / PRUNED).plan.to_json()


def _best_loss(run: SeedRun, metric: str) -> float:
    """Of the model that is left: before pruning it was another one."""
    lines = [line for line in read_report(Path(run.folder)) if line.get("phase") in (None, SETTLED)]
    losses = [line["metrics"].get(metric, math.nan) for line in lines]
    finite = [loss for loss in losses if math.isfinite(loss)]
    return min(finite) if finite else math.nan


def _state(run: SeedRun) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((Path(run.folder) / STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def _spent(run: SeedRun) -> float:
    return float(_state(run).get("seconds", 0.0))


def _is_finished(run: SeedRun) -> bool:
    return bool(_state(run).get("finished", False))


def _lock(path: Path) -> IO[str] | None:
    """Lock a training's folder for as long as the file is open in any process; None if taken."""
    lock = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _repair_checkpoints(folder: Path) -> None:
    """Make what a killed training left loadable: drop a half-written last, fall back to best."""
    last, best = folder / LAST, folder / BEST
    for path in (last, best):
        if path.is_file() and not checkpoint_is_whole(path):
            logger.warning("%s was cut off while it was written; it is not used", path)
            path.unlink()
    if best.is_file() and not last.is_file():
        shutil.copyfile(best, last)


def checkpoint_is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end (torch writes zip files)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _write_json(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
