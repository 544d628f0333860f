"""A replayed training: `nas-attn-replay`, a command as trials run.

Searches, stopping rules, faults and clusters are tried with it. It behaves as fairseq-train does
from outside (report, checkpoints, log, exit status) but only sleeps.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import math
import os
import signal
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from nas_attn.config_model import faults_of
from nas_attn.curves import Point
from nas_attn.errors import ConfigError, ConfigIssue, NasAttnError
from nas_attn.files import write_text, write_whole
from nas_attn.simulation.synthetic import (
    FaultName,
    ReplayConfig,
    curve_of,
    drawn_fault,
    validations_before_fault,
)
from nas_attn.trials.layout import BEST, LAST
from nas_attn.validation_log import report_validation

logger = logging.getLogger(__name__)

COMMAND = "nas-attn-replay"
ATTEMPTS_FILE = "attempts"
STATE_ENTRY = "replay.json"
OUT_OF_MEMORY = (
    "Traceback (most recent call last):\n"
    '  File "fairseq_cli/train.py", line 1, in cli_main\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
)


@dataclass(frozen=True, kw_only=True)
class ReplayedTraining:
    """What a `nas-attn-replay` command says.

    Args:
        config: The study's section `replay`.
        plan_text: Canonical text of the plan, `AttentionPlan.dumps()`.
        parameters: Total parameters to report.
        seed: Seed of the training.
        save_dir: Folder of checkpoints and of the count of attempts.
    """

    config: ReplayConfig
    plan_text: str
    parameters: int
    seed: int
    save_dir: Path


def replay_command(
    config: ReplayConfig, plan_text: str, parameters: int, seed: int, save_dir: Path
) -> list[str]:
    """The command of a replayed training; it means the same in every folder."""
    if config.curves is not None:
        config = config.model_copy(update={"curves": config.curves.absolute()})
    return [
        *(COMMAND, "--plan", plan_text),
        *("--parameters", str(parameters)),
        *("--seed", str(seed)),
        *("--save-dir", str(save_dir.absolute())),
        *("--config", config.model_dump_json()),
    ]


def parse_replay_command(command: Sequence[str]) -> ReplayedTraining:
    """The inverse of `replay_command`.

    Raises:
        NasAttnError: it is another command.
        ConfigError: its configuration is refused.
    """
    if not command or command[0] != COMMAND:
        raise NasAttnError(f"must be a command {COMMAND}, but is {' '.join(command)!r}")
    return _parse(command[1:])


def replay(training: ReplayedTraining) -> None:
    """Go through a training in real time, from where its checkpoint left off."""
    config, folder = training.config, training.save_dir
    folder.mkdir(parents=True, exist_ok=True)
    attempt = _count_attempt(folder / ATTEMPTS_FILE)
    points = curve_of(config, training.plan_text, training.parameters, training.seed).points
    pace = config.seconds / points[-1].seconds if points[-1].seconds else 0.0
    done = _validations_done(folder / LAST)
    fault = drawn_fault(config, training.plan_text, training.seed, attempt)
    fault_after = validations_before_fault(done, len(points))
    diverged = False
    logger.info("attempt %d, validations done: %d of %d", attempt, done, len(points))
    started = time.monotonic() - (points[done - 1].seconds * pace if done else 0.0)
    for index in range(done, len(points)):
        point = points[index]
        time.sleep(max(0.0, started + point.seconds * pace - time.monotonic()))
        if index == fault_after and fault is not None:
            if fault != "not_finite":
                _strike(fault)
            diverged = True
        if diverged:
            point = point._replace(loss=math.nan)
        _report(point, training.parameters)
        logger.info("valid | loss %.4f | num_updates %d", point.loss, point.num_updates)
        # What diverged is not saved: the next attempt continues from finite weights.
        if not diverged:
            _save(folder, points[: index + 1])
    logger.info("done training in %.1f seconds", config.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command `nas-attn-replay`."""
    form = "%(asctime)s | %(levelname)s | replay | %(message)s"
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=form)
    try:
        replay(_parse(sys.argv[1:] if arguments is None else arguments))
    except NasAttnError as error:
        sys.exit(str(error))


def _parse(arguments: Sequence[str]) -> ReplayedTraining:
    parser = argparse.ArgumentParser(prog=COMMAND, allow_abbrev=False)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--parameters", required=True, type=int)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--save-dir", required=True, type=Path)
    parser.add_argument("--config", required=True)
    given = parser.parse_args(arguments)
    try:
        config = ReplayConfig.model_validate(json.loads(given.config))
    except json.JSONDecodeError as error:
        raise ConfigError("--config", [ConfigIssue("(file)", f"is not JSON: {error}")]) from None
    except ValidationError as error:
        raise ConfigError("--config", faults_of(error)) from None
    return ReplayedTraining(
        config=config,
        plan_text=given.plan,
        parameters=given.parameters,
        seed=given.seed,
        save_dir=given.save_dir,
    )


def _strike(fault: FaultName) -> NoReturn:
    """End as a real training with this fault ends, or never."""
    if fault == "out_of_memory":
        sys.exit(OUT_OF_MEMORY)
    if fault == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if fault == "training_error":
        raise ValueError("a replayed training error")
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(3600)


def _report(point: Point, parameters: int) -> None:
    metrics = {"loss": point.loss, "nll_loss": point.loss, "ppl": _perplexity(point.loss)}
    report_validation(point.num_updates, {"total": parameters}, metrics)


def _perplexity(loss: float) -> float:
    try:
        return float(2.0**loss)
    except OverflowError:
        return math.inf


def _save(folder: Path, behind: Sequence[Point]) -> None:
    """Write the last checkpoint, and the best if it is that."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(STATE_ENTRY, json.dumps({"validations": len(behind)}))
    if min(behind, key=_finite_first) is behind[-1]:
        write_whole(folder / BEST, archive.getvalue())
    write_whole(folder / LAST, archive.getvalue())


def _finite_first(point: Point) -> float:
    return point.loss if math.isfinite(point.loss) else math.inf


def _validations_done(checkpoint: Path) -> int:
    if not checkpoint.is_file():
        return 0
    with zipfile.ZipFile(checkpoint) as file:
        return int(json.loads(file.read(STATE_ENTRY))["validations"])


def _count_attempt(path: Path) -> int:
    """The number of this attempt; the first is 1."""
    attempt = 1 + (int(path.read_text("utf-8")) if path.is_file() else 0)
    write_text(path, f"{attempt}\n")
    return attempt


if __name__ == "__main__":
    main()
