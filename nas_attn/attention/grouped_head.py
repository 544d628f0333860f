"""Grouped head attention: heads are trained into groups, voted on, and pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from nas_attn.attention.base import (
    CommonArguments,
    Projection,
    init_as_multi_head,
    init_output,
    split_heads,
)
from nas_attn.attention.effective import product_dimension
from nas_attn.attention.grouping import group_heads, inner_products
from nas_attn.attention.pruning import PrunableAttention
from nas_attn.errors import PlanError
from nas_attn.pruned import PRUNING

Feature = Literal["value", "attention", "output"]
Metric = Literal["euclidean", "cosine"]
VOTE_OPTIONS = ("keep", "vote_threshold", "centre_shift")
Keep = Literal["all", "most_votes", "pillars", "threshold", "random"]


@dataclass(frozen=True, kw_only=True)
class GroupedHeadOptions:
    """Options of grouped head attention. All but `kept_heads` concern training alone."""

    num_groups: int = field(
        default=2, metadata={"help": "groups C that heads are trained into; 2 by default"}
    )
    feature: Feature = field(
        default="value",
        metadata={"help": "what heads are compared by: value (default), attention or output"},
    )
    alpha: float = field(
        default=0.5, metadata={"help": "weight of likeness within groups; 0.5 by default"}
    )
    beta: float = field(
        default=0.5, metadata={"help": "weight of difference between groups; 0.5 by default"}
    )
    metric: Metric = field(
        default="euclidean",
        metadata={"help": "distance for groups and votes: euclidean (default) or cosine"},
    )
    padding_in_features: bool = field(
        default=False, metadata={"help": "let padding count in the features, as the authors do"}
    )
    keep: Keep = field(
        default="all",
        metadata={
            "help": "heads that stay after the vote: all (default, no vote), most_votes (the C "
            "heads with most votes), pillars (the head of each group with most), threshold (see "
            "--vote-threshold) or random (C at random)"
        },
    )
    vote_threshold: float = field(
        default=1.0,
        metadata={
            "help": "keep a head with at least this share of the votes of its group's pillar: 1 "
            "keeps the pillars alone, 0 all heads"
        },
    )
    centre_shift: float | None = field(
        default=None,
        metadata={"help": "hold the vote once the groups' centres move less than this"},
    )
    kept_heads: int | None = field(
        default=None, metadata={"help": "heads that are left after pruning; all by default"}
    )
    heads: str | None = field(
        default=None,
        metadata={
            "help": "which heads of a trained model those are, such as 0,3: conversion keeps them; "
            "says nothing to training"
        },
    )


class GroupedHeadAttention(PrunableAttention):
    """Multi-head attention whose heads are trained into groups and pruned to a few of each.

    The function is that of multi-head attention over the heads that stay. While `is_recording`,
    each call leaves in `products` the inner products of the heads' features, from which the
    training criterion forms groups, the constraint and votes (see `nas_attn.attention.grouping`);
    nothing is computed for groups at any other time.

    Args:
        embed_dim: Width of queries and of the output.
        num_heads: Number n of heads; must divide `embed_dim`. The width of a head stays embed_dim /
            n.
        num_groups: Number C of groups; fewer if fewer heads are left.
        feature: Feature that heads are compared by: values, attention weights or outputs.
        alpha, beta: Weights of the constraint's two terms.
        metric: Distance among features.
        padding_in_features: Whether padded positions count.
        keep: Rule of the vote.
        vote_threshold: Share of the pillar's votes, for the rule `threshold`.
        centre_shift: Share of the heads' lengths; once centres move less, the vote is held (see
            `shift`).
        kept_heads: Number of heads that this module has, pruned from n.
        heads: Numbers of these heads among the n of a trained module, rising, such as "0,3"; a name
            by which conversions know them, and no part of the function.
        kdim, vdim, dropout, bias: As in `Attention`.

    Raises:
        PlanError: an option is out of its range.
    """

    reference = "Ni, Mao, Yang, Lei and Cambria 2023, arXiv 2305.14380, section 3"

    votes: Tensor
    together: Tensor
    shift: Tensor
    groups: Tensor

    is_recording = False
    """Whether each call leaves `products`; set by `voting.recording`."""
    products: Tensor | None = None
    """Inner products (n, n) of the heads' features in the last call."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_groups: int = 2,
        feature: Feature = "value",
        alpha: float = 0.5,
        beta: float = 0.5,
        metric: Metric = "euclidean",
        padding_in_features: bool = False,
        keep: Keep = "all",
        vote_threshold: float = 1.0,
        centre_shift: float | None = None,
        kept_heads: int | None = None,
        heads: str | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        kept_heads = num_heads if kept_heads is None else kept_heads
        if not 1 <= kept_heads <= num_heads:
            raise PlanError(f"kept_heads must be between 1 and {num_heads}, but is {kept_heads}")
        names = None if heads is None else read_heads(heads, kept_heads, num_heads)
        if not 1 <= num_groups <= max(2, num_heads):  # the default is no fault of a single head
            raise PlanError(f"num_groups must be between 1 and {num_heads}, but is {num_groups}")
        if not 0.0 <= vote_threshold <= 1.0:
            raise PlanError(f"vote_threshold must be between 0 and 1, but is {vote_threshold}")
        if centre_shift is not None and centre_shift <= 0.0:
            raise PlanError(f"centre_shift must be above 0, but is {centre_shift}")
        joined_dim = kept_heads * (embed_dim // max(num_heads, 1))
        super().__init__(embed_dim, num_heads, joined_dim=joined_dim, **common)
        self.num_heads = kept_heads
        self.names = names
        self.num_groups = min(num_groups, kept_heads)
        self.feature = feature
        self.alpha = alpha
        self.beta = beta
        self.metric = metric
        self.padding_in_features = padding_in_features
        self.keep = keep
        self.vote_threshold = vote_threshold
        self.centre_shift = centre_shift
        self.k_proj = Projection(self.kdim, joined_dim, bias=self.has_bias)
        self.v_proj = Projection(self.vdim, joined_dim, bias=self.has_bias)
        self.q_proj = Projection(embed_dim, joined_dim, bias=self.has_bias)
        self.add_mask(kept_heads)
        self.register_buffer("votes", torch.zeros(kept_heads, dtype=torch.long))
        self.register_buffer("together", torch.zeros(kept_heads, kept_heads, dtype=torch.long))
        # Running mean of the centres' shift, and the groups of the last batch.
        self.register_buffer("shift", torch.ones(()))
        self.register_buffer("groups", torch.zeros(kept_heads, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        one_matrix = self.kdim == self.vdim == self.embed_dim
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            init_as_multi_head(projection, self.embed_dim, one_matrix=one_matrix)
        init_output(self.out_proj)

    def _apply(self, *args: Any, **named: Any) -> GroupedHeadAttention:
        """Move or cast, all but the running mean of the shift: 16 bit would swallow its steps."""
        super()._apply(*args, **named)  # type: ignore[no-untyped-call]
        if self.shift.dtype in (torch.float16, torch.bfloat16):
            self.shift = self.shift.float()
        return self

    pruning = PRUNING["grouped_head"]

    @property
    def is_prunable(self) -> bool:
        return self.prunes({"keep": self.keep})

    @property
    def wants_query_padding(self) -> bool:
        return self.is_recording or super().wants_query_padding

    def queries(self, query: Tensor) -> Tensor:
        return split_heads(self.q_proj(query), self.num_heads)

    def keys(self, key: Tensor) -> Tensor:
        return split_heads(self.k_proj(key), self.num_heads)

    def values(self, value: Tensor) -> Tensor:
        return split_heads(self.v_proj(value), self.num_heads)

    def mix_values(self, heads: Tensor) -> Tensor:
        if self.is_recording and self.feature == "output":
            self._record(heads, self.query_padding_mask)
        return heads * self.kept[:, None, None].to(heads.dtype) if self.is_masked else heads

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        compares_weights = self.is_recording and self.feature == "attention"
        if self.is_recording and self.feature == "value":
            self._record(values, key_padding_mask)
        output, weights = super().attend(
            query,
            keys,
            values,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
            need_weights=need_weights or compares_weights,
        )
        if compares_weights:
            assert weights is not None
            self._record(weights, self.query_padding_mask)
        return output, weights if need_weights else None

    def _record(self, features: Tensor, padding: Tensor | None) -> None:
        if self.padding_in_features:
            padding = None
        elif padding is not None and padding.dtype != torch.bool:
            padding = padding != 0.0
        self.products = inner_products(features, padding)

    def choose(self, seed: int) -> Tensor:
        """Heads that stay; ties go to the lower head.

        Groups change from batch to batch, so a head's group here is that of the heads with which
        it was most often together. A head's share of votes is taken of its pillar's, the head of
        the group with most.
        """
        votes = self.votes.cpu()
        heads, kept = self.num_heads, torch.zeros_like(votes)
        if self.keep == "all":
            return torch.ones_like(votes)
        if self.keep == "random":
            lot = torch.Generator().manual_seed(seed)
            kept[torch.randperm(heads, generator=lot)[: self.num_groups]] = 1
            return kept
        by_votes = votes.argsort(descending=True, stable=True)
        if self.keep == "most_votes":
            kept[by_votes[: self.num_groups]] = 1
            return kept
        labels = group_heads(self.together[None], self.num_groups)[0]
        for group in range(int(labels.max()) + 1):
            members = [head for head in by_votes.tolist() if labels[head] == group]
            kept[members[0]] = 1
            if self.keep == "threshold" and self.vote_threshold < 1.0:
                least = self.vote_threshold * int(votes[members[0]])
                for head in members:
                    kept[head] |= int(votes[head]) >= least
        return kept

    @classmethod
    def cut(
        cls, state: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        heads = state["kept"].numel()
        stay = state["kept"].nonzero().squeeze(1)
        small = dict(state)
        for name in ("k_proj", "v_proj", "q_proj"):
            for part in ("weight", "bias"):
                whole = state.get(f"{name}.{part}")
                if whole is not None:
                    rows = whole.view(heads, -1, *whole.shape[1:])[stay]  # (kept, h, inputs)
                    small[f"{name}.{part}"] = rows.flatten(0, 1)
        whole = state["out_proj.weight"]
        kept = whole.view(len(whole), heads, -1)[:, stay]  # (embed_dim, kept, h)
        small["out_proj.weight"] = kept.flatten(1)
        for name in ("kept", "votes", "groups"):
            small[name] = state[name][stay]
        small["together"] = state["together"][stay][:, stay]
        # What was pruned is not voted on again.
        left = {k: v for k, v in options.items() if k not in VOTE_OPTIONS}
        left["kept_heads"] = stay.numel()
        if left.get("heads") is not None:
            names = left["heads"].split(",")
            left["heads"] = ",".join(names[head] for head in stay.tolist())
        return small, left

    @classmethod
    def settled(cls, heads: Sequence[int]) -> dict[str, Any]:
        """The options where a vote on a trained module was held: so many heads, and which.

        Nothing is left to group, so there is no constraint.
        """
        names = ",".join(str(head) for head in heads)
        return {"kept_heads": len(heads), "heads": names, "alpha": 0.0, "beta": 0.0}

    @classmethod
    def expected(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any] | None:
        keep = options.get("keep", "all")
        if keep == "threshold":
            return None
        if keep == "all":
            return dict(options)
        return {**_unnamed(options), "kept_heads": options.get("num_groups", 2)}

    @classmethod
    def least(cls, options: Mapping[str, Any], num_heads: int) -> dict[str, Any]:
        """One head of each group, its pillar; all heads where every share of votes is enough."""
        heads = options.get("kept_heads") or num_heads
        keeps_all = options.get("keep") == "threshold" and options.get("vote_threshold") == 0.0
        if not cls.prunes(options) or keeps_all:
            return dict(options)
        return {**_unnamed(options), "kept_heads": min(heads, options.get("num_groups", 2))}

    def cache_size(self) -> int:
        return 2 * self.num_heads * self.head_dim

    def effective_parameters(self) -> int:
        """As in multi-head attention, for the heads that are left."""
        scores = product_dimension(self.embed_dim + self.has_bias, self.kdim, self.head_dim)
        outputs = product_dimension(self.vdim, self.embed_dim, self.head_dim)
        return self.num_heads * (scores + outputs) + self.embed_dim * self.has_bias


def read_heads(text: str, count: int, num_heads: int) -> tuple[int, ...]:
    """The numbers of heads in a text such as "0,3".

    Args:
        text: Whole numbers with commas between.
        count: Number of heads that it must name.
        num_heads: Number of heads that there were.

    Raises:
        PlanError: it is no such text.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise PlanError(f'heads must be numbers with commas between, such as "0,3", not {text!r}')
    heads = tuple(int(part) for part in parts)
    rising = tuple(sorted(set(heads)))
    if heads != rising or text != ",".join(str(head) for head in heads):
        raise PlanError(f"heads must be rising numbers without a space, but are {text!r}")
    if heads[-1] >= num_heads:
        raise PlanError(f"heads are numbered from 0 to {num_heads - 1}, but heads has {heads[-1]}")
    if len(heads) != count:
        raise PlanError(f"heads names {len(heads)}, but kept_heads is {count}")
    return heads


def _unnamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options where some heads go, and nobody knows which."""
    return {name: value for name, value in options.items() if name != "heads"}
