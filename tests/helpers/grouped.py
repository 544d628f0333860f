"""Small models with groups of heads and votes, as fairseq-train would build them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor

from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.prune import load_checkpoint

SMALL = [
    "--encoder-layers=2", "--decoder-layers=2", "--encoder-embed-dim=32", "--decoder-embed-dim=32",
    "--encoder-ffn-embed-dim=32", "--decoder-ffn-embed-dim=32", "--encoder-attention-heads=8",
    "--decoder-attention-heads=8", "--share-all-embeddings",
]  # fmt: skip
TRAINING = [
    "--optimizer=adam", "--lr=0.003", "--max-tokens=512", "--num-workers=0", "--seed=1",
    "--required-batch-size-multiple=1", "--log-format=json", "--update-epoch-batch-itr=True",
]  # fmt: skip
GROUPED = "grouped_label_smoothed_cross_entropy"
LAYERS = 6
"""Attention modules of the small model."""


class Bench:
    """A task, a model and a criterion as fairseq-train would build them."""

    def __init__(self, data: PreparedData, *flags: str, arch: str = "grouped_head") -> None:
        parser = options.get_training_parser()
        argv = [str(data.folder), f"--arch={arch}_transformer", *SMALL, *TRAINING, *flags]
        args = options.parse_args_and_arch(parser, [*argv, "--dropout=0"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hydra
            cfg = convert_namespace_to_omegaconf(args)
        torch.manual_seed(1)
        self.task = tasks.setup_task(cfg.task)
        self.model = self.task.build_model(cfg.model)
        self.criterion = self.task.build_criterion(cfg.criterion)
        self.config = cfg.criterion
        self.task.load_dataset("train")
        self.data = self.task.dataset("train")
        self.modules = [m for m in self.model.modules() if isinstance(m, GroupedHeadAttention)]
        self.stepped = 0
        self.ask_for_batches()

    def ask_for_batches(self, **more: int) -> None:
        """As fairseq's trainer does before an epoch."""
        self.batches = self.task.get_batch_iterator(
            dataset=self.data, max_tokens=512, required_batch_size_multiple=1, seed=1,
            update_epoch_batch_itr=True, **more,
        )  # fmt: skip

    def sample(self, *lines: int) -> dict[str, Any]:
        found: dict[str, Any] = self.data.collater([self.data[line] for line in lines])
        return found

    def loss(self, sample: dict[str, Any], training: bool = True) -> Tensor:
        self.model.train(training)
        loss: Tensor = self.criterion(self.model, sample)[0]
        return loss

    def update(self, number: int, *lines: int) -> None:
        """One update as fairseq's trainer makes it, with a step that only counts."""
        self.model.zero_grad()
        self.loss(self.sample(*lines)).backward()
        self.task.optimizer_step(self, model=self.model, update_num=number)

    def step(self) -> None:
        self.stepped += 1


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_checkpoint(checkpoint)["model"]
    return weights


def buffers(weights: dict[str, Tensor], name: str) -> list[list[int]]:
    return [tensor.tolist() for key, tensor in weights.items() if key.endswith(f".{name}")]
