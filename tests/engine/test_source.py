"""No plan is proposed or predicted whose decoder would not see the source."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nas_attn.engine.plan_costs import certain_excess
from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.engine.sensitivity import AdditiveModel, Measured, single_changes
from nas_attn.engine.swaps import swaps
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionPlan
from nas_attn.space import SearchSpace
from tests.helpers.fakes import BASELINE, OBJECTIVES, FakeCosts, make_space
from tests.helpers.single_changes import COSTS, effect

SPACE = make_space("layer", {"multi_head": {}, "none": {"output_bias": [True]}, "multi_query": {}})
EVERY = [
    plan
    for chosen in itertools.product(*(unit.alternatives for unit in SPACE.units))
    if (plan := SPACE.plan(chosen)).source_fault() is None
]


def make_model(further: tuple[str, ...]) -> AdditiveModel:
    """On which no attention between decoder and encoder is better than any."""
    changes = single_changes(SPACE, BASELINE, lambda plan: True)
    assert len(changes) == 6 * 2
    measured = {}
    for change in changes:
        gain = 1.0 if change.unit.startswith("encoder_decoder") and "none" in change.choice else 0.0
        measured[change.plan] = Measured(effect(change.plan).change - gain, 0.1)
    costs = ("total", "attention", measured, further)
    return AdditiveModel(SPACE, BASELINE, COSTS, *costs)


def test_a_space_counts_what_sees_the_source() -> None:
    assert len(EVERY) == SPACE.size == 3**6 - 3**4


@pytest.mark.parametrize("further", [(), ("cache_bytes",)])
def test_fronts_are_exact_among_plans_that_see_the_source(further: tuple[str, ...]) -> None:
    model = make_model(further)
    losses = {plan: model.predict(plan).change for plan in EVERY}  # type: ignore[union-attr]
    points = [(COSTS(plan)["total"], losses[plan]) for plan in EVERY]
    best = sorted(points[index] for index in non_dominated(points))
    found = model.front()
    assert [point.cost for point in found] == [cost for cost, _ in best]
    assert [p.change for p in found] == pytest.approx([loss for _, loss in best], abs=1e-5)
    blind = AttentionPlan.parse('{"encoder_decoder": {"scheme": "none", "output_bias": true}}')
    unseen = model.predict(blind.over(found[0].plan))
    assert unseen is not None and unseen.change < found[0].change, "the limit is felt"
    near = [near.plan for point in found for near in swaps(model, point, 9)]
    drawn = model.random_plans(60, seed=1)
    for plan in (*(point.plan for point in found), *near, *drawn):
        assert plan.source_fault() is None
    if further:
        most = {"cache_bytes": COSTS(BASELINE)["cache_bytes"] // 2}
        for point in (*model.front(limits=most), *model.surface(limits=most)):
            assert COSTS(point.plan)["cache_bytes"] <= most["cache_bytes"]
            assert point.plan.source_fault() is None


def test_proposals_see_the_source() -> None:
    blind = AttentionPlan.parse('{"encoder_decoder": "none"}').over(BASELINE)
    for limits in ({}, {"total": 10**9}):
        objectives = replace(OBJECTIVES, limits=limits)
        assert "would not see the source" in str(certain_excess(FakeCosts(), objectives, blind))
        assert certain_excess(FakeCosts(), objectives, BASELINE) is None
    assert smallest(SPACE) == min(COSTS(plan)["total"] for plan in EVERY)


def smallest(space: SearchSpace) -> float:
    return StratifiedSampler(space, lambda plan: COSTS(plan)["total"], 1).low
