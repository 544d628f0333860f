"""When heads are voted on, and that no weight is updated meanwhile (voting to stay, Ni et al. 2023,
Algorithm 1).

fairseq tells its task when an epoch begins and when a step is due, so these two of the task's
methods are wrapped; any task will do.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils
from torch import Tensor, nn

from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import Phase, PrunableAttention
from nas_attn.errors import PlanError

logger = logging.getLogger(__name__)


class Voting:
    """Leads a model from training through the vote to training with what stays.

    The phase lies in the modules' buffers and so in every checkpoint.

    Args:
        task: fairseq's; its `begin_epoch` and `optimizer_step` are wrapped.
        at_epoch: hold the vote in this epoch (from 1); 0 does not.
        at_update: hold it once so many updates are done; 0 does not.
        num_updates: of the vote; with 0 it lasts a whole epoch, and begins with one.
    """

    def __init__(self, task: Any, *, at_epoch: int, at_update: int, num_updates: int) -> None:
        self.at_epoch = at_epoch
        self.at_update = at_update
        self.num_updates = num_updates
        self.phase = Phase.TRAINING
        self._model: nn.Module | None = None
        self._modules: list[PrunableAttention] = []
        self._begin_epoch, self._step = task.begin_epoch, task.optimizer_step
        task.begin_epoch, task.optimizer_step = self.begin_epoch, self.optimizer_step

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Called by fairseq before the first batch, also when a training is continued."""
        self._begin_epoch(epoch, model)
        if model is not self._model:
            self._meet(model)
        if not self._modules:
            return
        began = int(self._modules[0].schedule[1])
        if self.phase == Phase.VOTING and not self.num_updates and epoch > began:
            self._settle()
        due = self.phase == Phase.READY or 0 < self.at_epoch <= epoch
        if self.phase < Phase.VOTING and due:
            self._enter(Phase.VOTING, epoch)

    def optimizer_step(self, optimizer: Any, model: nn.Module, update_num: int) -> None:
        """Called by fairseq for every update, after the gradients are there."""
        if self.phase == Phase.VOTING:
            for module in self._modules:
                module.schedule[2] += 1
            if self.num_updates and int(self._modules[0].schedule[2]) >= self.num_updates:
                self._settle()
            return
        self._step(optimizer, model=model, update_num=update_num)
        if not self._modules or self.phase != Phase.TRAINING:
            return
        due = 0 < self.at_update <= update_num + 1
        if due or self._centres_rest():
            self._enter(Phase.VOTING if self.num_updates else Phase.READY)

    def _meet(self, model: nn.Module) -> None:
        self._model = model
        prunable = [m for m in model.modules() if isinstance(m, PrunableAttention)]
        self._modules = [module for module in prunable if module.is_prunable]
        triggered = bool(self.at_epoch or self.at_update or self._waiting())
        if self._modules and not triggered:
            raise PlanError(
                "the plan prunes attention, but nothing says when: give --vote-at-epoch or "
                "--vote-at-update, or the option centre_shift"
            )
        if triggered and not self._modules:
            logger.info("pruning: the plan prunes nothing, so there is no vote")
        if self._modules:
            self.phase = Phase(int(self._modules[0].schedule[0]))

    def _waiting(self) -> list[GroupedHeadAttention]:
        """Those whose centres must come to rest."""
        return [
            module
            for module in self._modules
            if isinstance(module, GroupedHeadAttention) and module.centre_shift is not None
        ]

    def _centres_rest(self) -> bool:
        waiting = self._waiting()
        return bool(waiting) and all(float(m.shift) < (m.centre_shift or 0.0) for m in waiting)

    def _enter(self, phase: Phase, epoch: int = 0) -> None:
        self.phase = phase
        for module in self._modules:
            module.schedule.copy_(torch.tensor([phase, epoch, 0]))
        logger.info("pruning: %s", phase.name.lower())

    def _settle(self) -> None:
        for index, module in enumerate(self._modules):
            module.settle(seed=index)
        self._enter(Phase.SETTLED)
        left = [int(module.kept.sum()) for module in self._modules]
        logger.info("pruning: of each attention module stay %s", left)
        _forget_best()


def sum_over_workers(counts: Tensor, device: torch.device) -> Tensor:
    """Sum what the workers of a distributed training counted."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return counts
    there = counts.to(device)
    dist.all_reduce(there)
    return there.to(counts.device)


def _forget_best() -> None:
    """What was best before pruning must not stay the best: it is another model.

    fairseq keeps the best validation, for checkpoint_best.pt and for --patience, on its functions.
    """
    functions = [checkpoint_utils.save_checkpoint]
    for name in ("__main__", "fairseq_cli.train"):
        functions.append(getattr(sys.modules.get(name), "should_stop_early", None))
    for function in functions:
        if hasattr(function, "best"):
            del function.best
