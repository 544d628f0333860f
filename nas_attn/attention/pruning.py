"""Attention of which training chooses a part that stays; the rest can then be cut off."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from nas_attn.attention.base import Attention


class Phase(IntEnum):
    """How far a training with pruning has come; kept in the module's buffer `schedule`."""

    TRAINING = 0
    """All parts work."""
    READY = 1
    """As before, but the vote is due at the next epoch."""
    VOTING = 2
    """No weight is updated while parts are voted on."""
    SETTLED = 3
    """Some parts are masked, and the rest is trained on."""


BUFFERS = ("kept", "schedule")


class PrunableAttention(Attention):
    """Attention with a mask of the parts that stay, and the state of the vote on them.

    The state lies in buffers, so that a checkpoint holds it and a training can be continued at any
    moment: `kept` (1 for parts that stay) and `schedule` (phase, the epoch of the vote, its
    updates so far).
    """

    kept: Tensor
    schedule: Tensor

    is_masked = False
    """Whether some part is masked, so that nobody need look at numbers to know."""

    @property
    def is_prunable(self) -> bool:
        """Whether a vote is to be held."""
        return True

    def add_mask(self, parts: int) -> None:
        """Make the buffers; all parts stay."""
        self.register_buffer("kept", torch.ones(parts, dtype=torch.long))
        self.register_buffer("schedule", torch.zeros(3, dtype=torch.long))

    @abstractmethod
    def choose(self, seed: int) -> Tensor:
        """Which parts stay by what the vote has found: 0 or 1 for each.

        Args:
            seed: for rules that draw by lot.
        """

    def settle(self, seed: int) -> None:
        """Mask the parts that go."""
        self.kept.copy_(self.choose(seed))
        self._look_at_mask()

    @classmethod
    @abstractmethod
    def cut(
        cls, state: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take the masked parts out of the weights.

        Args:
            state: state dictionary of a module of this class.
            options: the scheme's options that it was built with.

        Returns:
            State dictionary and options of the smaller module, which computes the same.
        """

    @classmethod
    def expected(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any] | None:
        """The options after pruning, as far as they are known before training; None if not."""
        return dict(options)

    def _look_at_mask(self) -> None:
        self.is_masked = not bool(self.kept.all())

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if "kept" in self._buffers and not self.kept.is_meta:
            self._look_at_mask()
