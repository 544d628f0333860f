"""Measure what a conversion costs before any training: `nas-attn-measure`, a command as trials run.

It converts a trained checkpoint to a plan, in memory, and reports the validation loss and its
change. What every such measurement needs, recorded inputs of the attention and the losses of the
trained model itself, is made once by `calibrate`.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nas_attn.attention.counting import count_model
from nas_attn.bleu import DEFAULT, BleuTokenizer
from nas_attn.conversion import RecordedCall
from nas_attn.conversion.distillation import DistillationData
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.convert import (
    Converted,
    Losses,
    calibration_calls,
    convert_trained,
    validation_losses,
)
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.distillation import as_plain, distillation_data, from_plain
from nas_attn.fairseq_tools.divergence import Divergence, ScoreRecorder, Scores
from nas_attn.fairseq_tools.gradient_scores import GradientScore, gradient_scores
from nas_attn.fairseq_tools.kept_modules import KeptModules
from nas_attn.fairseq_tools.kept_outputs import KeptOutputs, Outputs, recording
from nas_attn.fairseq_tools.trained import TrainedModel, load_trained
from nas_attn.fairseq_tools.translation import validation_bleu
from nas_attn.plan import AttentionPlan
from nas_attn.validation_log import report_validation

COMMAND = "nas-attn-measure"
METRIC, CHANGE, ERROR = "nll_loss", "change", "change_error"
"""What is reported: the loss of the converted model in bits per token, by how much it is above the
trained model's, and the standard error of that change, sequences taken as pairs."""
DIVERGENCE, DIVERGENCE_ERROR = "divergence", "divergence_error"
"""And how far its predictions are from the trained model's, in bits per token, with the standard
error; left out with calibrations that earlier versions wrote."""


@dataclass(frozen=True)
class Calibration:
    """What measurements of one checkpoint share.

    Args:
        calls: Recorded calls of the attention modules, by place.
        losses: Losses of the trained model.
        distillation: What converted modules are trained on alone, by place; empty if they are not.
        name: Name of the calibration, which no other has; empty of what earlier versions wrote.
        outputs: Outputs of layers of the trained model on the validation set (see
            `kept_outputs`); empty of what earlier versions wrote.
        scores: What the trained model predicts of the validation set (see `divergence`); empty of
            what earlier versions wrote.
    """

    calls: dict[str, list[RecordedCall]]
    losses: Losses
    distillation: dict[str, DistillationData] = field(default_factory=dict)
    name: str = ""
    outputs: Outputs = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)


def calibrate(checkpoint: Path, data: Path, out: Path, *, distil: bool = False) -> None:
    """Make a file for `load_calibration`.

    Args:
        checkpoint: The trained checkpoint.
        data: Binarised data set.
        out: Path of the file.
        distil: Whether it is to hold what converted modules are trained on.

    Raises:
        NasAttnError: the checkpoint or the data are unfit, or there is no room.
    """
    trained = load_trained(checkpoint)
    calls = calibration_calls(trained, data)
    # As dictionaries: their tensors are read by what may hold nothing else.
    plain = {place: [_fields(call) for call in of_module] for place, of_module in calls.items()}
    outputs: Outputs = {}
    recorder = ScoreRecorder()
    with recording(trained, outputs):
        losses = validation_losses(trained, data, on_scores=recorder)
    state: dict[str, Any] = {"calls": plain, "losses": asdict(losses), "outputs": outputs}
    state["scores"] = recorder.scores
    if distil:
        state["distillation"] = as_plain(distillation_data(trained, data))
        state["name"] = uuid.uuid4().hex
    save_checkpoint(state, out)


def load_calibration(path: Path) -> Calibration:
    """Read what `calibrate` has made; calls are read from the disk as they are looked at.

    Raises:
        NasAttnError: the file is no such thing.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        calls = {
            place: [RecordedCall(**fields) for fields in of_module]
            for place, of_module in state["calls"].items()
        }
        lessons = from_plain(state.get("distillation", {}))  # files of earlier versions hold none
        return Calibration(
            calls=calls,
            losses=Losses(**state["losses"]),
            distillation=lessons,
            name=state.get("name", ""),
            outputs=state.get("outputs", {}),
            scores=state.get("scores", {}),
        )
    except Exception as error:  # torch raises many kinds
        raise NasAttnError(f"{path} holds no calibration: {error}") from None


def measure_command(
    checkpoint: Path, plan: AttentionPlan, data: Path, calibration: Path, *, distil: bool = False
) -> list[str]:
    """The command that measures one plan."""
    command = [COMMAND, "--checkpoint", str(checkpoint), "--plan", plan.dumps()]
    command += ["--data", str(data), "--calibration", str(calibration)]
    return [*command, "--distil"] if distil else command


def score_plans(
    checkpoint: Path,
    plans: Sequence[AttentionPlan],
    data: Path,
    calibration: Path,
    *,
    distil: bool = False,
) -> list[GradientScore]:
    """Score conversions by gradients, in this process; on a GPU if there is one.

    Args:
        checkpoint: The trained checkpoint.
        plans: Plans that it would be converted to.
        data: Binarised data set.
        calibration: File that `calibrate` has made of the checkpoint.
        distil: Whether converted modules are trained alone first, and kept for measurements.

    Raises:
        NasAttnError: The checkpoint or the data are unfit, or a scheme cannot inherit.
    """
    known = load_calibration(calibration)
    trained = load_trained(checkpoint)
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return gradient_scores(
        trained,
        plans,
        known.calls,
        data,
        distillation=known.distillation if distil else {},
        kept=_kept_modules(calibration, known) if distil else None,
    )


def translate_plans(
    checkpoint: Path,
    plans: Sequence[AttentionPlan],
    data: PreparedData,
    calibration: Path,
    *,
    tokenizer: BleuTokenizer = DEFAULT,
    distil: bool = False,
) -> Iterator[float]:
    """BLEU of conversions on the validation set, in this process; on a GPU if there is one.

    Args:
        checkpoint: The trained checkpoint.
        plans: Plans that it is converted to, one after the other.
        data: Binarised data set.
        calibration: File that `calibrate` has made of the checkpoint.
        tokenizer: Name of sacreBLEU's tokenizer.
        distil: Whether converted modules are trained alone first.

    Raises:
        NasAttnError: The checkpoint or the data are unfit, or nothing is translated.
    """
    known = load_calibration(calibration)
    for plan in plans:
        trained = load_trained(checkpoint)
        _convert(trained, plan, calibration, known, distil=distil)
        trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
        yield validation_bleu(trained, data, tokenizer)


def _convert(
    trained: TrainedModel,
    plan: AttentionPlan,
    path: Path,
    calibration: Calibration,
    *,
    distil: bool,
) -> Converted:
    """Convert a trained model as measurements do, with the calibration of a file."""
    return convert_trained(
        trained,
        plan,
        calibration.calls,
        distillation=calibration.distillation if distil else {},
        kept=_kept_modules(path, calibration) if distil else None,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog=COMMAND, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--distil", action="store_true")
    given = parser.parse_args(arguments)
    try:
        calibration = load_calibration(given.calibration)
        if given.distil and not calibration.distillation:
            raise NasAttnError(f"{given.calibration} holds nothing to distil on: make it for that")
        trained = load_trained(given.checkpoint)
        plan = AttentionPlan.parse(given.plan)
        converted = _convert(trained, plan, given.calibration, calibration, distil=given.distil)
        trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
        kept = KeptOutputs(calibration.outputs, [module.place for module in converted.modules])
        divergence = Divergence(calibration.scores)
        losses = validation_losses(trained, given.data, kept, divergence)
    except NasAttnError as error:
        sys.exit(str(error))
    change, deviation = losses.change_from(calibration.losses)
    sys.stdout.write(f"{METRIC} {losses.mean:.4f}, changed by {change:+.4f} +- {deviation:.4f}\n")
    figures = {METRIC: losses.mean, CHANGE: change, ERROR: deviation}
    if calibration.scores:
        figures[DIVERGENCE], figures[DIVERGENCE_ERROR] = divergence.mean()
    report_validation(0, count_model(trained.model)._asdict(), figures)


def _kept_modules(path: Path, calibration: Calibration) -> KeptModules:
    """Where measurements with one calibration keep what they have trained."""
    return KeptModules(path.parent / "modules", calibration.name)


def _fields(call: RecordedCall) -> dict[str, Any]:
    return {name: getattr(call, name) for name in call.__dataclass_fields__}


if __name__ == "__main__":
    main()
