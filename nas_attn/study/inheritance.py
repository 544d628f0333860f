"""Which plans can take over what a trained model has learned."""

from __future__ import annotations

from collections.abc import Mapping

from nas_attn.attention.counting import build_on_meta
from nas_attn.conversion import inherits
from nas_attn.plan import AttentionPlan, SiteShape


def inherits_everywhere(plan: AttentionPlan, shapes: Mapping[str, SiteShape]) -> bool:
    """Whether every module of a plan can take over what multi-head attention has learned."""
    return all(
        inherits(build_on_meta(choice, shapes[site]))
        for site, choices in plan
        for choice in choices
    )
