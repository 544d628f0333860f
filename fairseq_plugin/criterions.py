"""Criterions with the group constraint: `grouped_NAME` for every criterion NAME of fairseq.

In training, the constraint of Ni et al. 2023 (Eq. 4 B) on the model's `grouped_head` attention is
added to the loss of the task, and attention is pruned in time (see `voting`). In validation, and
once heads are pruned, the loss is that of NAME alone.

The constraint is one of a batch: heads are compared over the batch at hand. Where an update is made
of several batches, by --update-freq or on several GPUs, fairseq adds up their losses and divides
by all tokens. So with `--group-loss sum`, as in the authors' code, twice as many batches an update
give the constraint twice its weight, tokens being the same; with `mean` its weight stays as it is.
"""

# No `from __future__ import annotations`: fairseq reads the types of flags from the dataclass.

import dataclasses
from typing import Any, Self

from fairseq.criterions import (
    CRITERION_DATACLASS_REGISTRY,
    CRITERION_REGISTRY,
    FairseqCriterion,
    register_criterion,
)
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from omegaconf import II
from omegaconf.errors import InterpolationResolutionError
from torch import nn

from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import Phase
from nas_attn.attention.voting import constraints, count_votes, recording

from . import distillation  # noqa: F401  registers criterions, of which there are grouped ones too
from .voting import Voting


@dataclasses.dataclass
class GroupedConfig:
    """Flags of every grouped criterion."""

    group_loss: ChoiceEnum(["sum", "mean"]) = dataclasses.field(  # type: ignore[valid-type]
        default="sum",
        metadata={
            "help": "sum: add the constraint, summed over layers, to the loss summed over tokens "
            "(as the authors do); mean: its mean over layers to the mean loss (as they write)"
        },
    )
    vote_at_epoch: int = dataclasses.field(
        default=0,
        metadata={"help": "vote as this epoch begins on the heads that stay, and prune the rest"},
    )
    vote_at_update: int = dataclasses.field(
        default=0,
        metadata={"help": "vote once so many updates are done, and prune the rest"},
    )
    vote_updates: int = dataclasses.field(
        default=0,
        metadata={
            "help": "vote on the batches of so many updates, 0: of an epoch; they are run forward "
            "alone and take nothing from the training"
        },
    )
    update_freq: list[int] = dataclasses.field(default=II("optimization.update_freq"))
    amp: bool = dataclasses.field(default=II("common.amp"))


class GroupConstraint(FairseqCriterion):
    """Mix-in before a fairseq criterion; adds `group_within` and `group_between` to its log."""

    voting: Voting
    takes_mean: bool

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Self:
        criterion: Self = super().build_criterion(cfg, task)
        criterion.takes_mean = cfg.group_loss == "mean"
        criterion.voting = Voting(
            task,
            criterion,
            at_epoch=cfg.vote_at_epoch,
            at_update=cfg.vote_at_update,
            num_updates=cfg.vote_updates,
            update_freq=_elsewhere(cfg, "update_freq", [1]),
            is_amp=_elsewhere(cfg, "amp", False),
        )
        return criterion

    def forward(self, model: nn.Module, sample: Any, reduce: bool = True) -> Any:
        """The task's loss plus the constraint; arguments and returns are fairseq's."""
        modules = [m for m in model.modules() if isinstance(m, GroupedHeadAttention)]
        if not (modules and model.training) or self.voting.phase == Phase.SETTLED:
            return super().forward(model, sample, reduce)
        is_vote = self.voting.phase == Phase.VOTING
        modules = [m for m in modules if m.is_prunable] if is_vote else modules
        with recording(modules):
            loss, sample_size, log = super().forward(model, sample, reduce)
        if is_vote:
            if self.voting.is_counting:
                count_votes(modules)
            return loss, sample_size, log
        log = {**log, "group_within": 0.0, "group_between": 0.0, "group_batches": 1}
        for found in constraints(modules, self.voting.batches_per_update):
            term = found.term
            loss = loss + (term * sample_size / len(modules) if self.takes_mean else term)
            log["group_within"] += found.within / len(modules)
            log["group_between"] += found.between / len(modules)
        return loss, sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        super().reduce_metrics(logging_outputs)
        batches = sum(log.get("group_batches", 0) for log in logging_outputs)
        if not batches:
            return
        for name in ("group_within", "group_between"):
            total = sum(log.get(name, 0.0) for log in logging_outputs)
            metrics.log_scalar(name, total / batches, batches, round=4)


def _elsewhere(cfg: Any, name: str, default: Any) -> Any:
    """An option of another section; a checkpoint of old, only to be validated, has no such."""
    try:
        return getattr(cfg, name)
    except InterpolationResolutionError:
        return default


def _register(name: str) -> None:
    inner, config = CRITERION_REGISTRY[name], CRITERION_DATACLASS_REGISTRY[name]
    bases = (config, GroupedConfig)
    grouped = dataclasses.make_dataclass(f"Grouped{config.__name__}", [], bases=bases)
    criterion = type(f"Grouped{inner.__name__}", (GroupConstraint, inner), {})
    register_criterion(f"grouped_{name}", dataclass=grouped)(criterion)


for _name in list(CRITERION_DATACLASS_REGISTRY):
    _register(_name)
