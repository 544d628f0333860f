"""Replay learning curves in place of trainings, recorded or made up.

Searches, stopping rules, faults and clusters are tried with `nas-attn-replay`, a command that
behaves as fairseq-train does from outside (report, checkpoints, log, exit status) but only sleeps.
A simulated executor asks `curve_of` and `drawn_fault` instead and needs no process at all.
"""

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import logging
import math
import os
import re
import signal
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, get_args

from pydantic import Field, ValidationError, model_validator

from nas_attn.config_model import Count, FilePath, Section, faults_of
from nas_attn.errors import ConfigError, DataError, Fault, NasAttnError
from nas_attn.plan import AttentionPlan
from nas_attn.trials.scores import MOST_UPDATES
from nas_attn.validation_log import report_validation

logger = logging.getLogger(__name__)

COMMAND = "nas-attn-replay"
COLUMNS = ("plan", "seed", "num_updates", "loss", "seconds")
ATTEMPTS_FILE = "attempts"
LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"
STATE_ENTRY = "replay.json"

FaultName = Literal["out_of_memory", "killed", "not_finite", "hung", "disk_full", "training_error"]
OUT_OF_MEMORY = (
    "Traceback (most recent call last):\n"
    '  File "fairseq_cli/train.py", line 1, in cli_main\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
)

REFERENCE_PARAMETERS = 300_000
LOSS_FLOOR = 2.0
SIZE_COST = 1.0
SIZE_POWER = 0.3
EARLY_LOSS = 2.0
"""How far a model of the reference size lies above its final loss when a quarter is done."""
SITE_COST = 0.1
"""The final loss that the worst choice adds at a site; the best adds nothing."""
INTERACTION_COST = 0.02

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ReplayConfig(Section):
    """Replayed learning curves instead of trainings."""

    curves: FilePath | None = None
    """CSV of recorded curves (see `recorded_curves`); left out, curves are made up."""
    validations: Count = 9
    """Of a made-up curve."""
    updates_per_validation: Count = 100
    """Of a made-up curve."""
    seconds: NonNegative = 1.0
    """Real time of a whole training, also of a recorded one."""
    noise: NonNegative = 0.02
    """Standard deviation of a made-up curve's final loss over the seeds."""
    faults: dict[FaultName, Probability] = Field(default_factory=dict)
    """Probability of each fault, per attempt at a training."""

    @model_validator(mode="after")
    def _at_most_one_fault(self) -> ReplayConfig:
        total = round(math.fsum(self.faults.values()), 9)
        if total > 1:
            raise ValueError(f"the probabilities of faults must sum to at most 1, not {total}")
        return self


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


@dataclass(frozen=True, kw_only=True)
class ReplayedTraining:
    """What a `nas-attn-replay` command says.

    Args:
        config: the study's section `replay`.
        plan_text: canonical text of the plan, `AttentionPlan.dumps()`.
        parameters: total parameters to report.
        seed: of the training.
        save_dir: folder of checkpoints and of the count of attempts.
    """

    config: ReplayConfig
    plan_text: str
    parameters: int
    seed: int
    save_dir: Path


def curve_of(config: ReplayConfig, plan_text: str, parameters: int, seed: int) -> Curve:
    """The curve of one training; a recorded one keeps the seconds that were recorded.

    Raises:
        DataError: the file of recorded curves is refused.
        NasAttnError: it does not hold this training.
    """
    if config.curves is None:
        return synthetic_curve(config, plan_text, parameters, seed)
    curves = _curves_as_of(config.curves, _modified(config.curves))
    curve = curves.get((plan_text, seed))
    if curve is None:
        seeds = sorted(known for text, known in curves if text == plan_text)
        held = f"only of seeds {', '.join(map(str, seeds))}" if seeds else "of no seed"
        raise NasAttnError(
            f"{config.curves} holds no curve of seed {seed}, {held}, for plan {plan_text}"
        )
    return curve


def synthetic_curve(config: ReplayConfig, plan_text: str, parameters: int, seed: int) -> Curve:
    """A made-up curve: a power law that ends at the training's final loss.

    Smaller models learn faster but end higher, so curves of different sizes cross.
    """
    size = (parameters / REFERENCE_PARAMETERS) ** SIZE_POWER
    final = LOSS_FLOOR + SIZE_COST / size + _plan_cost(plan_text)
    final += config.noise * _gaussian(f"seed {seed} {plan_text}")
    points = []
    for number in range(1, config.validations + 1):
        done = number / config.validations
        loss = final + EARLY_LOSS * size * (done**-0.5 - 1)
        points.append(Point(number * config.updates_per_validation, loss, done * config.seconds))
    return Curve(tuple(points))


def recorded_curves(path: Path) -> dict[tuple[str, int], Curve]:
    """Read a CSV file with the columns plan, seed, num_updates, loss and seconds.

    A row is a validation. Rows of one training need not be neighbours, but are in order. Losses
    may be nan or inf.

    Returns:
        The curve of each (plan text, seed).

    Raises:
        DataError: the file is malformed; the message names line and column.
    """
    points: dict[tuple[str, int], list[Point]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            _read_rows(csv.DictReader(file, strict=True), points, path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"recorded curves {path} cannot be read: {error}") from None
    if not points:
        raise DataError(f"{path} holds no curve")
    return {key: Curve(tuple(of_key)) for key, of_key in points.items()}


def write_curves(curves: Mapping[tuple[str, int], Curve], path: Path) -> None:
    """Write what `recorded_curves` reads."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (plan_text, seed), curve in curves.items():
        writer.writerows((plan_text, seed, *point) for point in curve.points)
    _write_whole(path, text.getvalue().encode())


def drawn_fault(config: ReplayConfig, plan_text: str, seed: int, attempt: int) -> FaultName | None:
    """What goes wrong in an attempt (the first is 1) at a training, if anything."""
    draw = _unit(f"fault {attempt} {seed} {plan_text}")
    for fault in get_args(FaultName):
        draw -= config.faults.get(fault, 0.0)
        if draw < 0:
            name: FaultName = fault
            return name
    return None


def validations_before_fault(done: int, validations: int) -> int:
    """How many validations a training has behind it when its fault strikes, while it trains on.

    Args:
        done: how many it had saved when the attempt began.
        validations: how many the whole training has.
    """
    return (done + validations) // 2


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
        raise ConfigError("--config", [Fault("(file)", f"is not JSON: {error}")]) from None
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
        _write_whole(folder / BEST, archive.getvalue())
    _write_whole(folder / LAST, archive.getvalue())


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
    _write_whole(path, f"{attempt}\n".encode())
    return attempt


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"recorded curves {path} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=4)
def _curves_as_of(path: Path, _modified: int) -> dict[tuple[str, int], Curve]:
    return recorded_curves(path)


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
        row: of a DictReader.
        plans: the texts already checked; grows.
        points: of each curve so far; grows.
        line: where the row stands, for errors.
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


def _plan_cost(plan_text: str) -> float:
    """What the choices add to the final loss: nearly a sum over sites and layers."""
    total = INTERACTION_COST * _unit(f"interaction {plan_text}")
    for site, given in json.loads(plan_text).items():
        choices = given if isinstance(given, list) else [given]
        weights = [0.5 + _unit(f"layer {site} {layer}") for layer in range(len(choices))]
        costs = [_unit(f"choice {site} {choice}") for choice in choices]
        weighted = sum(weight * cost for weight, cost in zip(weights, costs, strict=True))
        total += SITE_COST * weighted / sum(weights)
    return total


def _gaussian(text: str) -> float:
    """A standard normal number that depends on the text alone (Box and Muller 1958)."""
    radius = math.sqrt(-2 * math.log(1 - _unit(f"radius {text}")))
    return radius * math.cos(2 * math.pi * _unit(f"angle {text}"))


@lru_cache(maxsize=4096)
def _unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


if __name__ == "__main__":
    main()
