"""Voting on the heads of a trained model, without training: from batches of its data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.pruning import Phase
from nas_attn.attention.voting import count_votes, recording
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.trained import build_trained, load_batches, load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan

logger = logging.getLogger(__name__)

MAX_TOKENS = 4096
"""Of a batch."""
BUFFERS = r".*\.attention\.(?:kept|schedule|votes|together|shift|groups)"
"""State of the vote, which multi-head attention has none of."""
RIDGE = 1e-6
"""Share of the mean squared input that is added to each, so that equal heads are distinguished."""


def vote_on_data(
    path: Path,
    data: Path,
    options: Mapping[str, Any],
    *,
    refit: bool,
    num_batches: int = 20,
    subset: str = "valid",
) -> tuple[AttentionPlan, dict[str, Tensor]]:
    """Group the heads of a trained model, vote, and mask the heads that go.

    Args:
        path: Checkpoint of a model with `multi_head` or `grouped_head` attention.
        data: Binarised data set.
        options: Options of `grouped_head`, such as `keep`; those left out are the plan's or the
            defaults.
        refit: Whether the output projections are also solved anew, by least squares, so that the
            heads that stay give what all heads gave.
        num_batches: Batches of the subset, at most; short and long sentences.
        subset: Split of the data set.

    Returns:
        Plan and state dictionary of the masked model.

    Raises:
        UsageError: the model has no such attention, or heads are pruned already.
    """
    trained = load_trained(path)
    plan = _as_grouped(trained.plan, options)
    trained.arguments.attention_plan = plan.dumps()
    weights = trained.state["model"]
    model = build_trained(trained.arguments, weights, path, lacking=BUFFERS)
    modules = [m for m in model.modules() if isinstance(m, GroupedHeadAttention)]
    if any(int(module.schedule[0]) != Phase.TRAINING for module in modules):
        raise UsageError(f"{path} has voted already: prune it without calibration data")
    batches = load_batches(trained, data, subset, MAX_TOKENS)
    # They are sorted by length: take short and long ones.
    numbers = range(len(batches.lines))[:: max(1, len(batches.lines) // num_batches)][:num_batches]
    with ExitStack() as stack, torch.no_grad():
        moments = [stack.enter_context(_moments(module)) for module in modules] if refit else []
        for number in numbers:
            with recording(modules):
                model(**batches[number]["net_input"])
            count_votes(modules)
        logger.info("voted on %d batches", len(numbers))
    for index, module in enumerate(modules):
        module.settle(index, batches=len(numbers))
    for module, sums in zip(modules, moments, strict=False):
        refit_output(module, sums)
    return plan, model.state_dict()


def refit_output(module: GroupedHeadAttention, moments: Tensor) -> None:
    """Solve the output projection for the heads that stay.

    Least squares over the inputs x (a one behind them for the bias): with W of all heads, the kept
    columns K get (E[x_K x_K^T])^-1 E[x_K x^T] W.

    Args:
        module: Module whose mask is made.
        moments: Sum of x x^T over tokens, (width + 1, width + 1).
    """
    weight = module.out_proj.weight.detach().double()
    bias = module.out_proj.bias
    columns = module.kept.repeat_interleave(module.head_dim).bool()
    inputs = torch.cat([columns, torch.tensor([bias is not None])])
    whole = torch.cat([weight.t(), torch.zeros(1, len(weight)).to(weight)])
    if bias is not None:
        whole[-1] = bias.detach()
    gram = moments[inputs][:, inputs]
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    solved = torch.linalg.solve(gram, moments[inputs] @ whole)
    with torch.no_grad():
        kept = solved[:-1] if bias is not None else solved
        module.out_proj.weight[:, columns] = kept.t().to(module.out_proj.weight)
        if bias is not None:
            bias.copy_(solved[-1])


@contextmanager
def _moments(module: GroupedHeadAttention) -> Iterator[Tensor]:
    """Sum x x^T over what the output projection gets, a one behind it; padding left out."""
    width = module.out_proj.in_features + 1
    sums = torch.zeros(width, width, dtype=torch.float64)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        joined = inputs[0]
        if module.query_padding_mask is not None:
            joined = joined[~module.query_padding_mask]
        joined = joined.flatten(0, -2).double()
        joined = torch.cat([joined, joined.new_ones(len(joined), 1)], dim=1)
        sums.add_(joined.t() @ joined)

    hook = module.out_proj.register_forward_pre_hook(add)
    try:
        yield sums
    finally:
        hook.remove()


def _as_grouped(plan: AttentionPlan, options: Mapping[str, Any]) -> AttentionPlan:
    """The plan with `grouped_head` of the given options wherever heads are a module's own."""
    sites = {}
    found = False
    for site, choices in plan:
        changed = []
        for choice in choices:
            if choice.scheme in ("multi_head", "grouped_head"):
                found = True
                choice = AttentionChoice.of(
                    "grouped_head", **(dict(choice.options) | dict(options))
                )
            changed.append(choice)
        sites[site] = changed
    if not found:
        raise UsageError("the plan has neither multi_head nor grouped_head attention")
    return AttentionPlan.of(sites)
