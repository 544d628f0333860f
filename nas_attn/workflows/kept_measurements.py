"""Measurements of a model's conversions, kept in a file as they come."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.conversion import RecordedCall
from nas_attn.engine.sensitivity import Measured
from nas_attn.errors import NasAttnError
from nas_attn.plan import AttentionPlan

CLOSE = 1e-4
"""Relative difference up to which two losses are of the same data, computed elsewhere."""


@dataclass(frozen=True)
class Score:
    """What gradients say of a conversion.

    Args:
        slope: Change of the loss to first order, and its standard error.
        curve: What comes to it for the curvature, but for a factor, and its standard error.
    """

    slope: Measured
    curve: Measured

    def change(self, factor: float) -> Measured:
        """The change of the loss with a factor of the curvature."""
        return Measured(
            self.slope.change + factor * self.curve.change,
            math.hypot(self.slope.error, factor * self.curve.error),
        )


@dataclass
class KeptMeasurements:
    """What was measured of a model's conversions, in a file of a folder if there is one.

    Args:
        path: The file; None keeps nothing.
        measured: Changes of the loss that were measured, by plan.
        scores: What gradients said, by plan.
    """

    path: Path | None = None
    measured: dict[AttentionPlan, Measured] = field(default_factory=dict)
    scores: dict[AttentionPlan, Score] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, of: Mapping[str, Any]) -> KeptMeasurements:
        """What a file holds, which is begun if it is not there.

        Args:
            path: The file.
            of: What is measured (see `identity`).

        Raises:
            NasAttnError: It cannot be read or written, or is of something else.
        """
        kept = cls(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                path.write_text(json.dumps(dict(of)) + "\n", encoding="utf-8")
            first, *lines = path.read_text(encoding="utf-8").splitlines()
            others = _differences(json.loads(first), of)
            for line in lines:
                if line.endswith("}"):  # one that was not written whole is measured again
                    kept._take(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NasAttnError(f"{path} cannot be used: {error}") from None
        if others:
            raise NasAttnError(
                f"{path} holds measurements of {' and of '.join(others)}: give another folder, or "
                "delete it"
            )
        return kept

    def _take(self, line: Mapping[str, Any]) -> None:
        plan = AttentionPlan.from_json(line["plan"])
        if "slope" in line:
            self.scores[plan] = Score(Measured(*line["slope"]), Measured(*line["curve"]))
        else:
            self.measured[plan] = Measured(line["change"], line["error"])

    def add(self, plan: AttentionPlan, measured: Measured) -> None:
        """Keep a measurement."""
        self.measured[plan] = measured
        self._write(plan, {"change": measured.change, "error": measured.error})

    def add_score(self, plan: AttentionPlan, score: Score) -> None:
        """Keep a score."""
        self.scores[plan] = score
        pairs = {"slope": score.slope, "curve": score.curve}
        self._write(plan, {name: [m.change, m.error] for name, m in pairs.items()})

    def _write(self, plan: AttentionPlan, numbers: Mapping[str, Any]) -> None:
        if self.path is not None:
            line = json.dumps({"plan": plan.to_json(), **numbers})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # before it, so that a torn line ends there


def identity(
    model: nn.Module, losses: Tensor, calls: Iterable[RecordedCall]
) -> dict[str, str | float]:
    """What tells a model with its data and loss from others.

    Args:
        model: Trained model.
        losses: Its losses (N,) on validation data.
        calls: Calls of one of its modules on calibration data.
    """
    sizes = [call.to(torch.float64).query.abs().mean() for call in calls]
    return {
        "weights": _digest(model.state_dict()),
        "examples": len(losses),
        "loss": float(losses.mean()),
        "calibration": float(torch.stack(sizes).mean()),
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """In what two models, with their data and losses, differ, in words."""

    def is_close(name: str) -> bool:
        return math.isclose(before[name], now[name], rel_tol=CLOSE, abs_tol=CLOSE)

    found = []
    if before["weights"] != now["weights"]:
        found.append("a model with other weights")
    if before["examples"] != now["examples"] or not is_close("loss"):
        found.append("other data or another loss")
    if not is_close("calibration"):
        found.append("other calibration data")
    return found


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        numbers = tensor.detach().cpu().flatten().contiguous().view(torch.uint8)
        digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()
