"""Votes on the heads of trained attention, by what it was called with: nothing is trained."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch

from nas_attn.attention import Attention
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.voting import count_votes, holds_vote, recording
from nas_attn.conversion.convert import convert_attention, heads_of
from nas_attn.conversion.metric import RecordedCall, run
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice

logger = logging.getLogger(__name__)


@torch.no_grad()
def settled_choice(
    trained: Attention, choice: AttentionChoice, calls: Sequence[RecordedCall], *, seed: int = 0
) -> AttentionChoice:
    """What a vote makes of a choice: which heads of a trained module stay.

    Heads are grouped call by call, and votes are counted, as in training (Ni et al. 2023, arXiv
    2305.14380), by the features that the choice says, padding left out. Nothing is drawn, but for
    `keep: random` by the seed: the same module and calls give the same heads.

    Args:
        trained: Trained module of any scheme; not changed.
        choice: Choice of `grouped_head` with a vote; any other is returned as it is.
        calls: Recorded calls of the trained module. Without them all heads stay, for training to
            vote on.
        seed: Seed of `keep: random`; the number of the module in its model.

    Returns:
        The choice with `kept_heads` and `heads`, and without the vote.

    Raises:
        PlanError: the choice does not fit the module, or also says how many heads stay.
    """
    if not holds_vote(choice):
        return choice
    if not calls:
        logger.warning(
            "%s: without data no vote is held, and all heads stay until training votes on them",
            choice,
        )
        return choice
    voter = _voter(copy.deepcopy(trained).cpu(), choice)
    dtype = next(voter.parameters()).dtype
    for call in calls:
        moved = call.to(dtype)
        voter.query_padding_mask = ~moved.valid_queries
        with recording([voter]):
            run(voter, moved)
        count_votes([voter])
    voter.settle(seed, batches=len(calls))
    names = heads_of(trained)
    kept = [names[head] for head in voter.kept.nonzero().squeeze(1).tolist()]
    return AttentionChoice.of(choice.scheme, **GroupedHeadAttention.settled(kept))


def _voter(trained: Attention, choice: AttentionChoice) -> GroupedHeadAttention:
    """A module of the choice's scheme that computes what the trained one does, with its heads."""
    options = dict(choice.options)
    heads = trained.num_heads
    if options.setdefault("kept_heads", heads) != heads or options.pop("heads", None) is not None:
        raise PlanError(
            "a vote on a trained model says which heads stay: leave out kept_heads and heads, or "
            "keep"
        )
    whole = AttentionChoice.of(choice.scheme, **options)
    voter = convert_attention(trained, whole, refit=False).module.eval()
    assert isinstance(voter, GroupedHeadAttention)
    return voter
