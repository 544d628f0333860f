"""When heads are voted on, and the vote itself (voting to stay, Ni et al. 2023, Algorithm 1).

A vote is a pass of its own over training batches: no weight changes, and fairseq's updates, its
learning rate and its place in the data stand still meanwhile, so a training with a vote takes as
many steps as one without. It is over before fairseq resumes. A training that is killed inside it
has its last checkpoint from before, and holds the same vote again.

fairseq calls its task when an epoch begins, when a step is due and which batches it trains on, so
these methods of the task are wrapped; any task will do.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.logging import metrics
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch import Tensor, nn

from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import Phase, PrunableAttention
from nas_attn.attention.voting import sum_over_workers
from nas_attn.errors import PlanError

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""How often a vote says how far it has come: a process that says nothing is taken for hung."""


class Voting:
    """Leads a model from training through the vote to training with what stays.

    The phase lies in the modules' buffers and so in every checkpoint.

    Args:
        task: Task of fairseq, whose `get_batch_iterator`, `begin_epoch` and `optimizer_step` are
            wrapped.
        criterion: Criterion that computes the loss, and has votes counted while `phase` is VOTING.
        at_epoch: Epoch (from 1) that begins with the vote; 0 for none.
        at_update: Number of updates after which it is held; 0 for none.
        num_updates: Number of updates on whose batches heads are voted; 0 for those of an epoch.
        update_freq: Batches of an update for each epoch, as fairseq has it; the last holds on.
        is_amp: Whether training runs under autocast (--amp), and so the vote.
    """

    def __init__(
        self,
        task: Any,
        criterion: nn.Module,
        *,
        at_epoch: int,
        at_update: int,
        num_updates: int,
        update_freq: Sequence[int] = (1,),
        is_amp: bool = False,
    ) -> None:
        self.at_epoch = at_epoch
        self.at_update = at_update
        self.num_updates = num_updates
        self.update_freq = tuple(update_freq)
        self.is_amp = is_amp
        self.phase = Phase.TRAINING
        self.is_counting = False
        """Whether the batch at hand is one to vote on, and not one that fills a worker's share."""
        self._task, self._criterion = task, criterion
        self._model: nn.Module | None = None
        self._modules: list[PrunableAttention] = []
        self._epoch, self._updates = 1, 0
        self._batches: dict[str, Any] | None = None
        self._get_batches = task.get_batch_iterator
        self._begin_epoch, self._step = task.begin_epoch, task.optimizer_step
        task.get_batch_iterator = self.get_batch_iterator
        task.begin_epoch, task.optimizer_step = self.begin_epoch, self.optimizer_step

    @property
    def batches_per_update(self) -> int:
        """Batches of this worker that make an update in this epoch."""
        return self.update_freq[min(self._epoch, len(self.update_freq)) - 1]

    def get_batch_iterator(self, *args: Any, **named: Any) -> Any:
        """Called by fairseq for the batches of an epoch, or of a validation."""
        if "update_epoch_batch_itr" in named:  # which fairseq's trainer gives for training alone
            self._batches = named
        return self._get_batches(*args, **named)

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Called by fairseq before the first batch, also when a training is continued."""
        self._begin_epoch(epoch, model)
        self._epoch = epoch
        if model is not self._model:
            self._meet(model)
        # Up to version 0.1 a vote could wait for its epoch, or be saved half held.
        is_overdue = self.phase in (Phase.READY, Phase.VOTING)
        self._vote_if(is_overdue or 0 < self.at_epoch <= epoch)

    def optimizer_step(self, optimizer: Any, model: nn.Module, update_num: int) -> None:
        """Called by fairseq for every update, after the gradients are there."""
        scale = _scale(optimizer)
        self._step(optimizer, model=model, update_num=update_num)
        if _scale(optimizer) < scale:
            return  # gradients overflowed, no weight has changed, and the batch comes once more
        self._updates = update_num + 1
        self._vote_if(0 < self.at_update <= self._updates or self._centres_rest())

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
            self.phase = Phase(min(int(module.schedule[0]) for module in self._modules))

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

    def _vote_if(self, is_due: bool) -> None:
        """Count votes where there are any to count, and mask what goes; once, if it is due."""
        if not is_due or not self._modules or self.phase == Phase.SETTLED:
            return
        voters = [m for m in self._modules if isinstance(m, GroupedHeadAttention)]
        batches = 0
        if voters:
            logger.info("pruning: the vote begins after %d updates", self._updates)
            self.phase = Phase.VOTING
            batches = self._count(voters)
        for index, module in enumerate(self._modules):
            module.settle(seed=index, epoch=self._epoch, batches=batches)
        self.phase = Phase.SETTLED
        left = [int(module.kept.sum()) for module in self._modules]
        logger.info("pruning: of each attention module stay %s", left)
        _forget_best()

    def _count(self, voters: Sequence[GroupedHeadAttention]) -> int:
        """Run the model forward, as in training, over the batches of the vote.

        Returns:
            How many batches all workers have voted on.
        """
        assert self._model is not None
        for module in voters:
            module.votes.zero_()
            module.together.zero_()
        like = next(self._model.parameters())
        optimizer = _NoAmpOptimizer() if self.is_amp else _NoOptimizer()
        own, said = 0, time.monotonic()
        seed = (self._batches or {}).get("seed", 1)
        devices = [like.device] if like.is_cuda else []
        # Nothing drawn or logged here is to be seen by the training.
        with torch.random.fork_rng(devices), metrics.aggregate(new_root=True), torch.no_grad():
            for done, (sample, is_own) in enumerate(self._samples(), start=1):
                self.is_counting = is_own
                own += is_own
                torch.manual_seed(seed + done)
                self._task.train_step(
                    _as_trained_on(sample, like),
                    self._model,
                    self._criterion,
                    optimizer,
                    self._updates,
                )
                if time.monotonic() - said >= LOG_SECONDS:
                    said = time.monotonic()
                    logger.info("pruning: voted on %d batches", done)
        for module in voters:
            for counts in (module.votes, module.together):
                counts.copy_(sum_over_workers(counts, like.device))
        batches = int(sum_over_workers(torch.tensor(own), like.device))
        logger.info("pruning: the vote is over after %d batches", batches)
        return batches

    def _samples(self) -> Iterator[tuple[Any, bool]]:
        """This worker's training batches for the vote, and whether each is to count.

        All workers get as many: where one's share is shorter, it runs its first batch once more.
        """
        if self._batches is None:
            raise PlanError("the vote knows no training batches: fairseq's trainer asked for none")
        # Without processes and threads of its own, which would outlive the vote.
        alone = {"num_workers": 0, "data_buffer_size": 0, "disable_iterator_cache": True}
        batches = self._get_batches(**{**self._batches, **alone})
        passes = (batches.next_epoch_itr(set_dataset_epoch=False) for _ in count())
        if self.num_updates:
            wanted = self.num_updates * self.batches_per_update
            samples = islice((sample for samples in passes for sample in samples), wanted)
        else:
            samples = iter(next(passes))
        for sample in samples:
            if sample is None or len(sample) == 0:
                yield batches.first_batch, False
            else:
                yield sample, True


class _NoOptimizer:
    """Stands where a task wants an optimizer to call for gradients."""

    def backward(self, loss: Tensor) -> None:
        """There are none."""


class _NoAmpOptimizer(_NoOptimizer, AMPOptimizer):
    """The same, for a task that runs under autocast where the optimizer is fairseq's for --amp."""

    def __init__(self) -> None:
        """There is nothing to be optimised."""


def _scale(optimizer: Any) -> float:
    """The factor of the loss under --amp, which an overflow makes smaller; else 1."""
    return float(optimizer.scaler.get_scale()) if isinstance(optimizer, AMPOptimizer) else 1.0


def _as_trained_on(sample: Any, like: Tensor) -> Any:
    """A batch on the model's device and in its precision, as fairseq's trainer prepares it."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(like.device, like.dtype if tensor.dtype == torch.float32 else None)

    return utils.apply_to_sample(convert, sample)


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
