"""Attention of which training chooses a part that stays; the rest can then be cut out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from nas_attn.attention.base import Attention
from nas_attn.errors import PlanError
from nas_attn.pruned import Pruning


class Phase(IntEnum):
    """How far a training with pruning has come; kept in the module's buffer `schedule`."""

    TRAINING = 0
    """All parts work."""
    READY = 1
    """As before, but the vote is due; only in checkpoints of version 0.1 and before."""
    VOTING = 2
    """Parts are voted on, while no weight changes; in no checkpoint after version 0.1."""
    SETTLED = 3
    """Some parts are masked, and the rest is trained on."""


BUFFERS = ("kept", "schedule")


class PrunableAttention(Attention):
    """Attention with a mask of the parts that stay, and the state of the vote on them.

    The state lies in buffers, so that a checkpoint holds it and a training can be continued at any
    moment: `kept` (1 for parts that stay) and `schedule` (phase, the epoch of the vote, on how many
    batches it was). A state that no training can be in is refused as it is loaded.
    """

    kept: Tensor
    schedule: Tensor

    pruning: ClassVar[Pruning]
    """Options that ask for it, and that count what is left."""

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
            seed: Seed for rules that draw at random.
        """

    def settle(self, seed: int, *, epoch: int = 0, batches: int = 0) -> None:
        """Mask the parts that go; the vote is over.

        Args:
            seed: Seed for rules that draw at random.
            epoch: Epoch of the vote.
            batches: Number of batches that it was on.
        """
        self.kept.copy_(self.choose(seed))
        self.schedule.copy_(torch.tensor([Phase.SETTLED, epoch, batches]))
        self._look_at_mask()

    @classmethod
    @abstractmethod
    def cut(
        cls, state: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take the masked parts out of the weights.

        Args:
            state: State dictionary of a module of this class.
            options: The scheme's options that it was built with.

        Returns:
            State dictionary and options of the smaller module, which computes the same.
        """

    @classmethod
    def expected(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any] | None:
        """The options after pruning, as far as they are known before training; None if not."""
        return dict(options)

    @classmethod
    @abstractmethod
    def least(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any]:
        """The options after the most pruning that training can come to."""

    @classmethod
    def prunes(cls, options: Mapping[str, Any]) -> bool:
        """Whether a module with these options is pruned in training."""
        return cls.pruning.is_on(options)

    def _look_at_mask(self) -> None:
        self.is_masked = not bool(self.kept.all())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        own = {name: state_dict.get(prefix + name) for name in self._buffers}
        check_vote(prefix.rstrip("."), own, votes_may_be_left=not self.is_prunable)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if "kept" in self._buffers and not self.kept.is_meta:
            self._look_at_mask()


def check_vote(
    place: str, state: Mapping[str, Tensor | None], *, votes_may_be_left: bool = True
) -> None:
    """See that the buffers of a prunable module can come from a training.

    Args:
        place: Name of the module, for messages.
        state: Buffers of the module by name, as far as there are any.
        votes_may_be_left: Whether there may be votes before the vote, as trainings of version 0.1
            left them on modules that did not prune.

    Raises:
        PlanError: they cannot, as in an average of checkpoints from before and after a vote.
    """
    kept, schedule = state.get("kept"), state.get("schedule")
    if kept is None or schedule is None or kept.is_meta or schedule.is_meta:
        return
    phases, moment = [int(phase) for phase in Phase], [float(value) for value in schedule.flatten()]
    parts, votes = kept.flatten().tolist(), state.get("votes")
    counted = votes is not None and bool((votes != 0).any())
    fault = None
    if len(moment) != 3 or moment[0] not in phases or min(moment) < 0:
        fault = f"its schedule {moment} is no moment of a training"
    elif not set(parts) <= {0, 1} or not any(parts):
        fault = f"its mask {parts} is not of zeros and ones with a part that stays"
    elif moment[0] != Phase.SETTLED and not all(parts):
        fault = f"parts are masked ({parts}), though its vote is not over"
    elif moment[0] < Phase.VOTING and counted and not votes_may_be_left:
        fault = "votes are counted, though its vote has not begun"
    if fault is not None:
        raise PlanError(
            f"{place}: {fault}; the checkpoint is damaged, or an average over a vote: average only "
            "checkpoints from after it"
        )
