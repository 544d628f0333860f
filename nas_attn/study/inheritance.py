"""Which plans can take over what a trained model has learned."""

from __future__ import annotations

from collections.abc import Mapping

from nas_attn.attention.counting import build_on_meta
from nas_attn.conversion import inherits
from nas_attn.plan import AttentionPlan, SiteShape


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
