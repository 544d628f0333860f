"""Groups and votes of whole models: the constraint of a batch, and what a batch adds to the votes.

Works on the `grouped_head` modules of any PyTorch model. A training step is

    modules = [m for m in model.modules() if isinstance(m, GroupedHeadAttention)]
    with recording(modules):
        loss = loss_of(model(batch))
    for found in constraints(modules):
        loss = loss + found.term

and a vote runs batches forward under `recording`, then `count_votes`, then each module's `settle`.

Shape legend: L layers whose heads can be grouped in one go, n heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nas_attn.attention import grouping
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.registry import get_scheme
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice

SHIFT_MEMORY = 0.98
"""Share of the running mean of the centres' shift that an update leaves: about 50 updates."""


class Constraint(NamedTuple):
    """The group constraint of some modules on one batch, summed over them."""

    term: Tensor
    """What is added to a loss, beta * between - alpha * within."""
    within: Tensor
    """Mean cosines of heads with their own centre; without gradients."""
    between: Tensor
    """Mean cosines of pairs of centres; without gradients."""


@contextmanager
def recording(modules: Sequence[GroupedHeadAttention]) -> Iterator[None]:
    """Let modules leave the inner products of their heads' features.

    Raises:
        PlanError: Afterwards, if a module was not run, or only as it was recomputed.
    """
    for module in modules:
        module.is_recording = True
    try:
        yield
    finally:
        for module in modules:
            module.is_recording = False
    if any(module.products is None for module in modules):
        raise PlanError("the group constraint does not see layers that are dropped or recomputed")


def constraints(
    modules: Sequence[GroupedHeadAttention], batches_per_update: int = 1
) -> Iterator[Constraint]:
    """The group constraint by what modules recorded, which is taken away from them.

    Heads are grouped anew, and modules keep their groups and how far centres have moved.

    Args:
        modules: Those that were under `recording`.
        batches_per_update: Number of batches whose gradients this worker adds up for one update.

    Yields:
        One constraint for each kind of module (heads, groups and metric).
    """
    for alike, products in _stacks(modules):
        within, between = _constrain(alike, products, batches_per_update)  # (L,) each
        alpha = within.new_tensor([module.alpha for module in alike])
        beta = within.new_tensor([module.beta for module in alike])
        term = (beta * between - alpha * within).sum()
        yield Constraint(term, within.detach().sum(), between.detach().sum())


def count_votes(modules: Sequence[GroupedHeadAttention]) -> None:
    """Add one batch's votes, and which heads were in one group, to what the modules hold.

    Args:
        modules: Those that were under `recording`.
    """
    for alike, products in _stacks(modules):
        measured, labels = _group(alike, products)
        votes, together = grouping.vote(measured, labels), grouping.together(labels)
        for module, ones, pairs in zip(alike, votes, together, strict=True):
            module.votes += ones.to(module.votes.device)
            module.together += pairs.to(module.together.device)


def holds_vote(choice: AttentionChoice) -> bool:
    """Whether a vote of heads is a part of a choice."""
    module = get_scheme(choice.scheme).module
    return issubclass(module, GroupedHeadAttention) and module.prunes(dict(choice.options))


def sum_over_workers(counts: Tensor, device: torch.device) -> Tensor:
    """Sum what the workers of a distributed training counted.

    Args:
        counts: This worker's, of any shape.
        device: Where workers can exchange tensors.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return counts
    there = counts.to(device, copy=True)
    dist.all_reduce(there)
    return there.to(counts.device)


def _stacks(
    modules: Sequence[GroupedHeadAttention],
) -> Iterator[tuple[list[GroupedHeadAttention], Tensor]]:
    """Modules whose heads can be grouped in one go, with their inner products (L, n, n)."""
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
    """Inner products (L, n, n) in the metric of the modules, and the groups (L, n) of heads."""
    products = products.detach().cpu().double()
    if modules[0].metric == "cosine":
        products = grouping.normalise(products)
    return products, grouping.group_heads(products, modules[0].num_groups)


def _constrain(
    modules: list[GroupedHeadAttention], products: Tensor, batches_per_update: int
) -> tuple[Tensor, Tensor]:
    measured, labels = _group(modules, products)
    before = torch.stack([module.groups for module in modules]).cpu()  # (L, n)
    shift = grouping.centre_shift(measured, labels, before)
    if any(module.centre_shift is not None for module in modules):
        shift = sum_over_workers(shift, products.device) / sum_over_workers(
            torch.ones_like(shift), products.device
        )
    memory = SHIFT_MEMORY ** (1 / batches_per_update)
    for module, groups, moved in zip(modules, labels, shift, strict=True):
        module.groups.copy_(groups)
        module.shift.mul_(memory).add_(float(moved) * (1.0 - memory))
    return grouping.constraint_terms(products, labels)
