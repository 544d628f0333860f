"""What votes make of a plan, module by module."""

from __future__ import annotations

from collections.abc import Mapping

from nas_attn.plan import AttentionPlan
from nas_attn.space import Votes


def settled_by(votes: Votes, plan: AttentionPlan, layers: Mapping[str, int]) -> AttentionPlan:
    """A plan with the heads that stay in the place of votes, module by module."""
    return AttentionPlan.of(
        {
            site: [
                votes.of(site, layer, choice) or choice
                for layer, choice in enumerate(plan.layers(site, count))
            ]
            for site, count in layers.items()
        }
    )
