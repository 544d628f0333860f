"""A small space with made-up measurements of its single changes."""

from __future__ import annotations

import itertools

from nas_attn.engine.sensitivity import AdditiveModel, Measured, single_changes
from nas_attn.plan import AttentionPlan
from nas_attn.space import SearchSpace
from tests.helpers.fakes import BASELINE, FakeCosts, make_space

SCHEMES = {
    "multi_head": {},
    "collaborative": {"shared_dim": [2, 8, 32]},
    "multi_query": {},
    "head_embedding_add": {},
}
COSTS = FakeCosts().known


def inherits(plan: AttentionPlan) -> bool:
    return "head_embedding_add" not in plan.dumps()


def effect(plan: AttentionPlan) -> Measured:
    """Made up: what a plan changes on its own."""
    return Measured(int(plan.digest[:4], 16) / 65536, int(plan.digest[4:6], 16) / 2560)


def make_model(decide: str = "site") -> tuple[SearchSpace, AdditiveModel, dict[str, Measured]]:
    space = make_space(decide, SCHEMES)
    changes = single_changes(space, BASELINE, inherits)
    measured = {change.plan: effect(change.plan) for change in changes}
    model = AdditiveModel(space, BASELINE, COSTS, "total", "cache_bytes", measured)
    return space, model, {f"{c.unit} {c.choice}": effect(c.plan) for c in changes}


def plans_of(space: SearchSpace) -> list[AttentionPlan]:
    """All that can inherit."""
    every = itertools.product(*(unit.alternatives for unit in space.units))
    return [plan for plan in map(space.plan, every) if inherits(plan)]
