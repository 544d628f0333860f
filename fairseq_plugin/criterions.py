"""Criterions with the group constraint: `grouped_NAME` for every criterion NAME of fairseq.

In training, the constraint of Ni et al. 2023 (Eq. 4 B) on the model's `grouped_head` attention is
added to the loss of the task, and attention is pruned in time (see `voting`). In validation, and
once heads are pruned, the loss is that of NAME alone.
"""

# No `from __future__ import annotations`: fairseq reads the types of flags from the dataclass.

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
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
from torch import Tensor, nn

from nas_attn.attention import grouping
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import Phase
from nas_attn.errors import PlanError

from .voting import Voting, sum_over_workers

SHIFT_MEMORY = 0.98
"""Share of the running mean of the centres' shift that an update leaves: about 50 updates."""


@dataclasses.dataclass
class GroupedConfig:
    """Flags of every grouped criterion."""

    group_loss: ChoiceEnum(["sum", "mean"]) = dataclasses.field(
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
            update_freq=_update_freq(cfg),
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
        for alike, products in _stacks(modules):
            within, between = _constrain(alike, products)
            alpha = within.new_tensor([module.alpha for module in alike])
            beta = within.new_tensor([module.beta for module in alike])
            term = (beta * between - alpha * within).sum()
            loss = loss + (term * sample_size / len(modules) if self.takes_mean else term)
            log["group_within"] += within.detach().sum() / len(modules)
            log["group_between"] += between.detach().sum() / len(modules)
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


@contextmanager
def recording(modules: list[GroupedHeadAttention]) -> Iterator[None]:
    """Let modules leave the inner products of their heads' features."""
    for module in modules:
        module.is_recording = True
    try:
        yield
    finally:
        for module in modules:
            module.is_recording = False
    if any(module.products is None for module in modules):
        raise PlanError("the group constraint does not see layers that are dropped or recomputed")


def count_votes(modules: list[GroupedHeadAttention]) -> None:
    """Add one batch's votes, and which heads were in one group, to what the modules hold."""
    for alike, products in _stacks(modules):
        measured, labels = _group(alike, products)
        votes, together = grouping.vote(measured, labels), grouping.together(labels)
        for module, ones, pairs in zip(alike, votes, together, strict=True):
            module.votes += ones.to(module.votes.device)
            module.together += pairs.to(module.together.device)


def _update_freq(cfg: Any) -> list[int]:
    """Batches of an update; a checkpoint of old, whose criterion is only to validate, has none."""
    try:
        return list(cfg.update_freq)
    except InterpolationResolutionError:
        return [1]


def _stacks(
    modules: list[GroupedHeadAttention],
) -> Iterator[tuple[list[GroupedHeadAttention], Tensor]]:
    """Modules whose heads can be grouped in one go, with the inner products; takes those away."""
    stacks: dict[tuple[int, int, str], list[GroupedHeadAttention]] = {}
    for module in modules:
        key = (module.num_heads, module.num_groups, module.metric)
        stacks.setdefault(key, []).append(module)
    for alike in stacks.values():
        products = torch.stack([module.products for module in alike])  # type: ignore[misc]
        for module in alike:
            module.products = None
        yield alike, products


def _group(modules: list[GroupedHeadAttention], products: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products in the metric of the modules, and the groups of their heads."""
    products = products.detach().cpu().double()
    if modules[0].metric == "cosine":
        products = grouping.normalise(products)
    return products, grouping.group_heads(products, modules[0].num_groups)


def _constrain(modules: list[GroupedHeadAttention], products: Tensor) -> tuple[Tensor, Tensor]:
    measured, labels = _group(modules, products)
    before = torch.stack([module.groups for module in modules]).cpu()
    shift = grouping.centre_shift(measured, labels, before)
    if any(module.centre_shift is not None for module in modules):
        shift = sum_over_workers(shift, products.device) / sum_over_workers(
            torch.ones_like(shift), products.device
        )
    for module, groups, moved in zip(modules, labels, shift, strict=True):
        module.groups.copy_(groups)
        module.shift.mul_(SHIFT_MEMORY).add_(float(moved) * (1.0 - SHIFT_MEMORY))
    return grouping.constraint_terms(products, labels)


def _register(name: str) -> None:
    inner, config = CRITERION_REGISTRY[name], CRITERION_DATACLASS_REGISTRY[name]
    bases = (config, GroupedConfig)
    grouped = dataclasses.make_dataclass(f"Grouped{config.__name__}", [], bases=bases)
    criterion = type(f"Grouped{inner.__name__}", (GroupConstraint, inner), {})
    register_criterion(f"grouped_{name}", dataclass=grouped)(criterion)


for _name in list(CRITERION_DATACLASS_REGISTRY):
    _register(_name)
