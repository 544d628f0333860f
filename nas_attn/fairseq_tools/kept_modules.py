"""Converted modules in files, so that measurements of many plans train each only once."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nas_attn.attention import Attention
from nas_attn.conversion import Conversion, Errors
from nas_attn.conversion.convert import build_like
from nas_attn.conversion.distillation import Distilled
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.plan import AttentionChoice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptModules:
    """Converted modules of one trained model, by place and choice.

    Args:
        folder: Folder of the files.
        calibration: Name of what they were calibrated on; modules of another are not taken.
    """

    folder: Path
    calibration: str

    def load(self, place: str, choice: AttentionChoice, trained: Attention) -> Conversion | None:
        """What was kept; None if there is nothing that can be used.

        Args:
            place: Site and layer.
            choice: Scheme and options of the converted module.
            trained: Trained module that it was converted from.
        """
        path = self._path(place, choice)
        if not path.is_file():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["calibration"] != self.calibration:
                return None
            module = build_like(trained, choice)
            module.load_state_dict(state["module"])
            parameter = next(trained.parameters())
            module.to(device=parameter.device, dtype=parameter.dtype).train(trained.training)
            return Conversion(
                module,
                Errors(**state["errors"]),
                Distilled(**state["distilled"] | {"seconds": 0.0}),
            )
        except Exception as error:  # torch raises many kinds
            logger.warning("%s is of no use and made again: %s", path, error)
            return None

    def save(self, place: str, choice: AttentionChoice, conversion: Conversion) -> None:
        """Keep a module that was trained alone; others are made again as quickly."""
        if conversion.distilled is None or conversion.errors is None:
            return
        state = {
            "calibration": self.calibration,
            "module": conversion.module.state_dict(),
            "errors": asdict(conversion.errors),
            "distilled": asdict(conversion.distilled),
        }
        try:
            save_checkpoint(state, self._path(place, choice))
        except NasAttnError as error:  # no reason to lose the measurement
            logger.warning("a converted module is not kept: %s", error)

    def _path(self, place: str, choice: AttentionChoice) -> Path:
        digest = hashlib.sha256(str(choice).encode()).hexdigest()[:12]
        return self.folder / f"{place}-{choice.scheme}-{digest}.pt"
