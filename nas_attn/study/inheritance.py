"""Which plans can take over what a trained model has learned."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap

from nas_attn.attention.counting import build_on_meta
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.voting import holds_vote
from nas_attn.conversion import inherits
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape


def inherits_everywhere(
    plan: AttentionPlan, shapes: Mapping[str, SiteShape], *, distilled: bool = False
) -> bool:
    """Whether every module of a plan can take over what multi-head attention has learned.

    Args:
        plan: The plan.
        shapes: Shapes of the sites.
        distilled: Whether converted modules are trained alone (see `convert --distil`).
    """
    return all(
        inherits(build_on_meta(choice, shapes[site]), distilled=distilled)
        for site, choices in plan
        for choice in choices
    )


def leaves_as_many(choice: AttentionChoice, num_heads: int) -> bool:
    """Whether a choice has a vote that leaves the same number of heads in every model."""
    if not holds_vote(choice):
        return False
    return GroupedHeadAttention.expected(dict(choice.options), num_heads) is not None


def plans_of_other_seeds(
    plan: AttentionPlan, offered: AttentionPlan, shapes: Mapping[str, SiteShape]
) -> tuple[AttentionPlan, AttentionPlan]:
    """What models of other seeds become, where a plan names heads that one seed's votes left.

    Numbers of heads say nothing in a model of another seed, so the vote is held again on each, if
    it leaves as many heads there. Else heads of the same numbers are kept.

    Args:
        plan: The plan, with the heads of the first seed's votes.
        offered: The plan with the votes as they are on offer.
        shapes: Shapes of the sites.

    Returns:
        The plan that trained models are converted to, and the one that they are then trained with.
    """
    converted, trained = {}, {}
    for site, _ in plan:
        shape = shapes[site]

        def again(
            named: AttentionChoice, vote: AttentionChoice, num_heads: int = shape.num_heads
        ) -> tuple[AttentionChoice, AttentionChoice]:
            if named == vote or not leaves_as_many(vote, num_heads):
                return named, named
            options = {name: value for name, value in named.options if name != "heads"}
            return vote, AttentionChoice.of(named.scheme, **options)

        both = (plan.layers(site, shape.num_layers), offered.layers(site, shape.num_layers))
        converted[site], trained[site] = zip(*starmap(again, zip(*both, strict=True)), strict=True)
    return AttentionPlan.of(converted), AttentionPlan.of(trained)
