"""fairseq-train within the process of a test, with each of its steps looked at."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask

from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.prune import load_checkpoint
from tests.helpers.grouped import GROUPED, SMALL, TRAINING


class Steps:
    """Trains in this process and notes each step: its learning rate, and that weights changed.

    Args:
        device: To train on, `cpu` or `cuda`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.rates: list[float] = []
        self.changed: list[bool] = []
        self.begun = 0

    def _watch(self, patch: pytest.MonkeyPatch) -> None:
        real_step, real_train = FairseqOptimizer.step, FairseqTask.train_step

        def step(optimizer: Any, *args: Any, **named: Any) -> None:
            before = [parameter.clone() for parameter in optimizer.params]
            real_step(optimizer, *args, **named)
            self.rates.append(optimizer.get_lr())
            changes = (not torch.equal(*two) for two in zip(before, optimizer.params, strict=True))
            self.changed.append(any(changes))

        def train_step(*args: Any, **named: Any) -> Any:
            self.begun += 1
            return real_train(*args, **named)

        patch.setattr(FairseqOptimizer, "step", step)
        patch.setattr(FairseqTask, "train_step", train_step)

    def train(self, data: PreparedData, folder: Path, *flags: str) -> dict[str, Any]:
        """Returns the last checkpoint."""
        from fairseq import checkpoint_utils
        from fairseq_cli import train

        if hasattr(checkpoint_utils.save_checkpoint, "best"):
            del checkpoint_utils.save_checkpoint.best
        argv = [str(data.folder), "--arch=grouped_head_transformer", f"--criterion={GROUPED}"]
        argv += [*SMALL, *TRAINING, f"--save-dir={folder}", "--lr-scheduler=inverse_sqrt"]
        argv += ["--warmup-updates=3", "--warmup-init-lr=0.001", "--dropout=0.1"]
        argv += ["--cpu"] if self.device == "cpu" else ["--distributed-world-size=1"]
        argv += ["--no-epoch-checkpoints", "--max-tokens=1024", "--max-tokens-valid=4096", *flags]
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            self._watch(patch)
            warnings.simplefilter("ignore")  # of torch about fairseq
            args = options.parse_args_and_arch(options.get_training_parser(), argv)
            train.main(convert_namespace_to_omegaconf(args))
        return load_checkpoint(folder / "checkpoint_last.pt")
