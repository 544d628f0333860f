"""What plans cost, as far as it is known before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nas_attn.attention.counting import expected_plan, least_plan
from nas_attn.engine.objectives import Objectives
from nas_attn.plan import AttentionPlan, SiteShape


class PlanCosts(Protocol):
    """What plans cost, as far as it is known before training."""

    @property
    def shapes(self) -> dict[str, SiteShape]: ...

    def known(self, plan: AttentionPlan) -> Mapping[str, int]: ...


def expected_costs(costs: PlanCosts, plan: AttentionPlan) -> tuple[Mapping[str, int], bool]:
    """What a plan costs after the pruning that it asks for, and whether that is certain."""
    left, certain = expected_plan(plan, costs.shapes)
    return costs.known(left), certain


def least_costs(costs: PlanCosts, plan: AttentionPlan) -> Mapping[str, int]:
    """What a plan costs at the least, if training prunes all that it can."""
    return costs.known(least_plan(plan, costs.shapes))


def certain_excess(costs: PlanCosts, objectives: Objectives, plan: AttentionPlan) -> str | None:
    """Which limit a plan breaks however much of it is pruned, in words; None if it need not.

    That a decoder sees the source is one.
    """
    if not objectives.limits or plan.source_fault():
        return plan.source_fault()
    _, certain = expected_plan(plan, costs.shapes)
    when = "" if certain else "pruned as far as can be, "
    return objectives.violated_limit(least_costs(costs, plan), when=when)
