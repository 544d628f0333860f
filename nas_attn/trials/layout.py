"""The folder of a trial: names of its files, what is finished, its plan, locks and checkpoints.

A disk fills, a machine loses power, people edit. What cannot be what a training has written is a
`TrialFileError`, which names the file and ends that trial alone; what costs nothing to do without
is left out with a warning.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nas_attn.config_model import faults_of
from nas_attn.errors import TrialFileError
from nas_attn.files import parse_json, read_bytes, write_json
from nas_attn.plan import AttentionPlan
from nas_attn.shell import shell_text
from nas_attn.trials.job import TrialJob

logger = logging.getLogger(__name__)

LOG_FILE, TEST_LOG_FILE, MEASURE_LOG_FILE = "train.log", "test.log", "measure.log"
TEST_LOSS_LOG_FILE = "test_loss.log"
START_LOG_FILE, PRUNE_LOG_FILE = "start.log", "prune.log"
COMMANDS_FILE, ERROR_FILE = "commands.sh", "error.log"
LOCK_FILE = "training.lock"
STATE_FILE, PLAN_FILE = "finished.json", "plan.json"
CALIBRATION_FILE, VOTES_FILE = "calibration.pt", "votes.json"
CHECKPOINTS, START = "checkpoints", "start"
LAST, BEST, PRUNED = "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_pruned.pt"
MOST_JSON_BYTES = 4 * 1024 * 1024

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(allow_inf_nan=False, ge=0)]


def _as_plan(data: dict[str, Any] | None) -> dict[str, Any] | None:
    if data is not None:
        AttentionPlan.from_json(data)
    return data


class _State(BaseModel):
    """What is finished of a run."""

    model_config = ConfigDict(strict=True, extra="allow")

    seconds: NotNegative = 0.0
    started: bool = False
    trained: bool = False
    finished: bool = False
    plan: Annotated[dict[str, Any] | None, AfterValidator(_as_plan)] = None
    test: dict[str, Finite] = Field(default_factory=dict)
    test_loss: dict[str, Finite] = Field(default_factory=dict)
    decoding_seconds: list[NotNegative] = Field(default_factory=list)


def read_state(folder: Path) -> dict[str, Any]:
    """What is finished of a run, as far as there is any.

    `seconds` of training, `started` (there is a checkpoint to start from), `trained` (what is left
    is to prune), `finished` (training and pruning), `plan` (after pruning), `test` and `test_loss`
    (scores) and `decoding_seconds` (of each measurement). Of a damaged file nothing is believed:
    the steps are done again, of which a training that had ended ends at once.

    Raises:
        TrialFileError: the file cannot be read.
    """
    path = folder / STATE_FILE
    content = read_bytes(path, MOST_JSON_BYTES)
    if content is None:
        return {}
    data = parse_json(content.decode("utf-8", errors="replace"))
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
    content = read_bytes(folder / PLAN_FILE, MOST_JSON_BYTES)
    data = None if content is None else parse_json(content.decode("utf-8", errors="replace"))
    if data is None or data[0] == plan:
        return False
    try:
        return AttentionPlan.from_json(data[0]) != AttentionPlan.from_json(plan)
    except (ValueError, TypeError, AttributeError):
        return True


def write_trial_files(job: TrialJob) -> None:
    """Keep a trial's plan and trainings in its folder, for people."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    commands = "".join(
        shell_text(command, job.threads) + "\n"
        for run in job.runs
        for command in (run.start, run.command)
        if command
    )
    (folder / COMMANDS_FILE).write_text(commands, encoding="utf-8")
    write_json(folder / PLAN_FILE, job.plan)


def best_checkpoint(run_folder: Path) -> Path:
    """Where a training keeps the checkpoint of its best validation, pruned if it is."""
    pruned = run_folder / CHECKPOINTS / PRUNED
    return pruned if pruned.is_file() else run_folder / CHECKPOINTS / BEST


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


def repair_checkpoints(folder: Path) -> None:
    """Make what a killed training left loadable: drop a half-written last, fall back to best."""
    last, best = folder / LAST, folder / BEST
    for path in (last, best):
        if path.is_file() and not checkpoint_is_whole(path):
            logger.warning("%s was truncated while it was written; it is not used", path)
            path.unlink()
    if best.is_file() and not last.is_file():
        shutil.copyfile(best, last)


def lock_folder(path: Path) -> IO[str] | None:
    """Lock a training's folder for as long as the file is open in any process; None if taken."""
    lock = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
