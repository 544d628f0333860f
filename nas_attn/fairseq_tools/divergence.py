"""How far a converted model's predictions are from the trained model's, beside the loss.

The divergence of Kullback and Leibler says so of every word of the dictionary, the loss of the
targets alone. What the trained model says is kept once; each measurement compares with it in the
same pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nas_attn.fairseq_tools.convert import Losses

MAX_BYTES = 128 * 2**20
"""What kept predictions may take in all; of larger validation sets every second batch is kept,
every fourth, and so on."""
STORED = torch.float16

Scores = dict[int, Tensor]
"""Logarithms of probabilities (N, types) of the targets of a batch, by its number."""


@dataclass
class ScoreRecorder:
    """Keeps what a trained model predicts, as `on_scores` of `validation_losses`.

    Args:
        scores: What was kept.
        every: Of the batches one in so many is kept.
    """

    scores: Scores = field(default_factory=dict)
    every: int = 1

    def __call__(self, number: int, scores: Tensor, seen: Tensor) -> None:
        if number % self.every:
            return
        self.scores[number] = scores[seen].to("cpu", STORED)
        while len(self.scores) > 1 and self._bytes() > MAX_BYTES:
            self.every *= 2
            self.scores = {n: kept for n, kept in self.scores.items() if n % self.every == 0}

    def _bytes(self) -> int:
        return sum(kept.numel() * kept.element_size() for kept in self.scores.values())


@dataclass
class Divergence:
    """Compares a converted model's predictions with those, as `on_scores` of `validation_losses`.

    Args:
        kept: What the trained model predicted.
        sums: Divergence of each sequence that was compared, in bits.
        tokens: Targets of each.
    """

    kept: Mapping[int, Tensor]
    sums: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def __call__(self, number: int, scores: Tensor, seen: Tensor) -> None:
        kept = self.kept.get(number)
        if kept is None:
            return
        # What was rounded no longer adds up to one.
        trained = kept.to(scores.device, torch.float32).log_softmax(-1)
        each = (trained.exp() * (trained - scores[seen])).sum(-1).double() / math.log(2.0)
        rows = torch.zeros(seen.shape, dtype=torch.float64, device=scores.device)
        rows[seen] = each
        self.sums += rows.sum(1).tolist()
        self.tokens += seen.sum(1).tolist()

    def mean(self) -> tuple[float, float]:
        """A target, in bits, and its standard error over the sequences; nan if none was kept."""
        if not self.tokens:
            return math.nan, math.nan
        return Losses(self.sums, self.tokens).change_from(
            Losses([0.0] * len(self.sums), self.tokens)
        )
