"""Predictions from single changes: sums, the exact front of them, limits, and their own test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from nas_attn.analysis.predictions import PlanConstraints, Predictions
from nas_attn.attention.counting import count_cache
from nas_attn.engine.sensitivity import (
    AdditiveModel,
    Measured,
    PredictionCheck,
    largest_steps,
    single_changes,
    spread_predictions,
    validity_of,
)
from nas_attn.errors import SearchError
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionPlan
from nas_attn.study.sensitivity import SensitivityTarget
from tests.helpers.fakes import BASELINE, OBJECTIVES, FakeCosts, made_votes, make_space
from tests.helpers.single_changes import COSTS, SCHEMES, effect, inherits, make_model, plans_of


def summed(plan: AttentionPlan, effects: Mapping[str, Measured]) -> Measured:
    """By names of sites and not through the space."""
    terms = [
        effects[f"{site} {choices[0]}"] for site, choices in plan if str(choices[0]) != "multi_head"
    ]
    return Measured(sum(t.change for t in terms), math.sqrt(sum(t.error**2 for t in terms)))


def test_what_is_measured() -> None:
    space = make_space("site", SCHEMES)
    changes = single_changes(space, BASELINE, inherits)
    assert len(changes) == 3 * 4
    assert {change.unit for change in changes} == {
        "encoder_self",
        "decoder_self",
        "encoder_decoder",
    }
    for change in changes:
        others = [c for site, (c, *_) in change.plan if site != change.unit]
        assert [str(choice) for choice in others] == ["multi_head"] * 2
    by_layer = single_changes(make_space("layer", SCHEMES), BASELINE, inherits)
    assert len(by_layer) == 6 * 4
    last = next(c for c in by_layer if (c.unit, c.choice) == ("decoder_self.1", "multi_query"))
    assert str(last.plan) == (
        "encoder_self multi_head; decoder_self [multi_head | multi_query]; "
        "encoder_decoder multi_head"
    )


def test_predictions_are_sums() -> None:
    space, model, effects = make_model()
    for plan in plans_of(space):
        found, wanted = model.predict(plan), summed(plan, effects)
        assert found is not None
        assert found.change == pytest.approx(wanted.change)
        assert found.error == pytest.approx(wanted.error)
    foreign = AttentionPlan.parse('{"encoder_self": "single_head"}').over(BASELINE)
    assert model.predict(foreign) is None
    added = AttentionPlan.parse('{"encoder_self": "head_embedding_add"}').over(BASELINE)
    assert model.predict(added) is None, "it was not measured"


def test_votes_that_are_known_are_choices_as_any_other() -> None:
    """Costs are those of the heads that stay, and the same heads are one plan, measured once."""
    schemes = {
        "multi_head": {},
        "multi_query": {},
        "grouped_head": {"keep": ["threshold"], "vote_threshold": [0.25, 0.5, 0.75]},
    }
    heads = {0.25: "0,1,3", 0.5: "0,3", 0.75: "0,3"}
    space = make_space("site", schemes).settled(made_votes(heads))
    changes = single_changes(space, BASELINE, inherits)
    assert len(changes) == 3 * 4
    assert len({change.plan for change in changes}) == 3 * 3
    assert {change.choice for change in changes} == {
        "multi_query", *(f"grouped_head(keep=threshold, vote_threshold={share})" for share in heads)
    }  # fmt: skip
    measured = {change.plan: effect(change.plan) for change in changes}
    model = AdditiveModel(space, BASELINE, COSTS, "total", None, measured)
    every = itertools.product(*(unit.alternatives for unit in space.units))
    plans = set(map(space.plan, every))
    assert len(plans) == 4**3
    points = []
    for plan in plans:
        found = model.predict(plan)
        assert found is not None
        points.append((COSTS(plan)["total"], found.change))
    front = model.front()
    assert [(p.cost, round(p.change, 6)) for p in front] == sorted(
        (cost, round(change, 6)) for cost, change in (points[i] for i in non_dominated(points))
    )
    assert all(COSTS(p.plan)["total"] == p.cost and "keep" not in p.plan.dumps() for p in front)
    assert any("heads" in p.plan.dumps() for p in front)


@pytest.mark.parametrize("max_schemes", [None, 1, 2])
def test_the_front_is_exact(max_schemes: int | None) -> None:
    space, model, effects = make_model()
    plans = [
        plan
        for plan in plans_of(space)
        if len({c.scheme for _, choices in plan for c in choices}) <= (max_schemes or 9)
    ]
    points = [(COSTS(p)["total"], summed(p, effects).change) for p in plans]
    best = sorted(points[index] for index in non_dominated(points))
    found = model.front(max_schemes=max_schemes)
    assert [p.cost for p in found] == [cost for cost, _ in best]
    assert [p.change for p in found] == pytest.approx([change for _, change in best])
    assert all(COSTS(p.plan)["total"] == p.cost for p in found)


class FakePredictions(Predictions):
    """On the made-up model, with a study's limits."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.axis = "total"
        self.decoding = None
        self.target = cast(
            SensitivityTarget,
            SimpleNamespace(
                costs=FakeCosts(),
                objectives=replace(OBJECTIVES, limits=limits),
                baseline=BASELINE,
            ),
        )


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"total": 60_000},
        {"cache_bytes": 600},
        {"cache_bytes": 600, "total": 70_000},
        {"cache_bytes": 767.5, "attention": 65_000},
        {"total": 9},
    ],
)
def test_a_predicted_front_is_taken_within_the_limits(limits: dict[str, float]) -> None:
    """With a real cache, which has little to do with the parameters, so that what is best within a
    limit need lie on no front without it."""

    def costs(plan: AttentionPlan) -> dict[str, int]:
        return {**COSTS(plan), "cache_bytes": 4 * count_cache(plan, FakeCosts.shapes)}

    space, _, effects = make_model()
    measured = {
        change.plan: effect(change.plan) for change in single_changes(space, BASELINE, inherits)
    }
    model = AdditiveModel(space, BASELINE, costs, "total", None, measured, tuple(limits))
    within = [p for p in plans_of(space) if all(costs(p)[n] <= most for n, most in limits.items())]
    points = [(COSTS(plan)["total"], summed(plan, effects).change) for plan in within]
    wanted = sorted(points[index] for index in non_dominated(points))
    found = FakePredictions(limits)._front(model, PlanConstraints())
    assert [point.cost for point in found] == [cost for cost, _ in wanted]
    assert [point.change for point in found] == pytest.approx([c for _, c in wanted], abs=1e-4)
    assert bool(found) == (limits != {"total": 9})


def test_limits_are_on_what_is_counted() -> None:
    FakePredictions({}).check_counted("total", "cache_bytes")
    with pytest.raises(SearchError, match=r"does not count flops; it has attention, .*cache_bytes"):
        FakePredictions({}).check_counted("total", "flops")


def test_the_tighter_of_two_limits_holds() -> None:
    constraints = PlanConstraints(limits={"total": 60_000, "cache_bytes": 700})
    found = FakePredictions({"total": 70_000, "cache_bytes": 600})._limits(constraints)
    assert found == {"total": 60_000, "cache_bytes": 600}


def test_the_surface_over_two_costs_is_exact() -> None:
    def costs(plan: AttentionPlan) -> dict[str, int]:
        return {**COSTS(plan), "cache_bytes": 4 * count_cache(plan, FakeCosts.shapes)}

    space, _, effects = make_model()
    measured = {
        change.plan: effect(change.plan) for change in single_changes(space, BASELINE, inherits)
    }
    model = AdditiveModel(space, BASELINE, costs, "total", None, measured, ("cache_bytes",))
    for most in (None, 2):
        plans = [
            plan
            for plan in plans_of(space)
            if len({c.scheme for _, choices in plan for c in choices}) <= (most or 9)
        ]
        points = [
            (costs(p)["total"], costs(p)["cache_bytes"], round(summed(p, effects).change, 6))
            for p in plans
        ]
        wanted = {points[index] for index in non_dominated(points)}
        found = model.surface(max_schemes=most)
        assert {(p.cost, *p.others, round(p.change, 6)) for p in found} == wanted
        assert len(found) > len(model.front(max_schemes=most))
        for point in found:
            known = costs(point.plan)
            assert (known["total"], known["cache_bytes"]) == (point.cost, *point.others)


def test_first_layers_that_stay() -> None:
    _, model, _ = make_model("layer")
    free, kept = model.front(), model.front(keep_first_layer=True)
    assert kept[0].cost > free[0].cost
    for prediction in kept:
        assert all(str(choices[0]) == "multi_head" for _, choices in prediction.plan)


def test_random_plans_are_measured_ones_and_the_same_again() -> None:
    _, model, _ = make_model()
    plans = model.random_plans(20, seed=3)
    assert len(set(plans)) == 20
    assert all(model.predict(plan) is not None for plan in plans)
    assert plans == model.random_plans(20, seed=3)
    assert len(model.random_plans(10_000, seed=3)) == 5**3


def test_points_are_spread_over_the_axis() -> None:
    _, model, _ = make_model("layer")
    front = model.front()
    chosen = spread_predictions(front, 4)
    assert (chosen[0], chosen[-1]) == (front[0], front[-1])
    step = (front[-1].cost - front[0].cost) / 3
    for number, point in enumerate(chosen):
        wanted = front[0].cost + number * step
        assert abs(point.cost - wanted) == min(abs(p.cost - wanted) for p in front)
    assert spread_predictions(front, 10_000) == front


def checks(
    measured: list[float], predicted: list[float], error: float = 0.001
) -> list[PredictionCheck]:
    pairs = enumerate(zip(measured, predicted, strict=True))
    return [
        PredictionCheck(plan=BASELINE, cost=i, kind="random", predicted=p, measured=m, error=error)
        for i, (m, p) in pairs
    ]


PREDICTED = [0.9, 0.5, 0.7, 0.3, 0.4, 0.1, 0.08, 0.05, 0.02]


def test_a_sum_that_holds() -> None:
    validity = validity_of(checks([1.02 * p for p in PREDICTED], PREDICTED))
    assert (validity.ranks.overall, validity.ranks.is_guide) == (1.0, True)
    assert validity.ratio == pytest.approx((1.02, 1.02, 1.02))
    assert (validity.left, validity.corrected(0.5)) == (None, 0.5)


def test_strong_changes_that_cost_more_than_their_sum_are_corrected() -> None:
    validity = validity_of(checks([1.1 * p + 0.8 * p**2 for p in PREDICTED], PREDICTED))
    assert (validity.scale, validity.bend) == pytest.approx((1.1, 0.8))
    assert validity.left == pytest.approx(0, abs=1e-9)
    assert validity.corrected(0.5) == pytest.approx(0.55 + 0.8 * 0.25)
    assert validity.corrected(-0.1) == pytest.approx(-0.11)
    assert validity.ranks.is_guide


def test_corrections_keep_the_order() -> None:
    """Also where weak changes drift more than strong ones: then all are scaled alike."""
    validity = validity_of(checks([1.5 * p - 0.2 * p**2 for p in PREDICTED], PREDICTED))
    assert validity.bend == 0
    assert 1.3 < validity.scale < 1.5
    steps = [validity.corrected(p / 100) for p in range(-10, 300)]
    assert steps == sorted(steps)


def test_what_does_not_add_up_is_no_guide() -> None:
    shuffled = [0.3, 0.9, 0.1, 0.7, 0.02, 0.5, 0.4, 0.08, 0.05]
    assert not validity_of(checks(shuffled, PREDICTED)).ranks.is_guide
    flat = validity_of(checks([0.1] * 9, PREDICTED))
    assert not flat.ranks.is_guide, "what is not known is not trusted"


def test_changes_within_the_noise_make_no_ratio() -> None:
    validity = validity_of(checks([5 * p for p in PREDICTED], PREDICTED, error=1.0))
    assert all(math.isnan(value) for value in validity.ratio)
    assert (validity.left, validity.corrected(0.5)) == (None, 0.5)


def test_unsure_steps_are_halved() -> None:
    _, model, _ = make_model("layer")
    front = model.front()
    low, high = front[0], front[-1]
    middle = min(front, key=lambda p: abs(p.cost - (low.cost + high.cost) / 2))
    # The step left of the middle is ten times as high as the one right of it.
    reached = [(low.cost, 11.0), (middle.cost, 1.0), (high.cost, 0.0)]
    chosen = largest_steps(front, reached, 1)
    wanted = (low.cost + middle.cost) / 2
    assert abs(chosen[0].cost - wanted) == min(abs(p.cost - wanted) for p in front)
    more = largest_steps(front, reached, 5)
    assert len({p.cost for p in more} - {cost for cost, _ in reached}) == 5
    assert sum(p.cost < middle.cost for p in more) == 4, "a half is still five times as high"
    everything = largest_steps(front, reached, 10_000)
    assert len(everything) == len(front) - 3
    assert largest_steps(front, reached[:1], 3) == []


def test_a_better_plan_must_be_within_the_constraints() -> None:
    found = FakePredictions({})
    found.target.space = make_space("layer", SCHEMES)  # type: ignore[misc]
    first, later = (
        AttentionPlan.parse(f'{{"encoder_self": [{text}]}}').over(BASELINE)
        for text in ('"multi_query", "multi_head"', '"multi_head", "multi_query"')
    )
    for plan in (first, later):
        cost = COSTS(plan)["cache_bytes"]
        assert found._allows(plan, PlanConstraints(max_schemes=2, limits={"cache_bytes": cost}))
        assert not found._allows(plan, PlanConstraints(max_schemes=1))
        assert not found._allows(plan, PlanConstraints(limits={"cache_bytes": cost - 1}))
    assert found._allows(later, PlanConstraints(keep_first_layer=True))
    assert not found._allows(first, PlanConstraints(keep_first_layer=True))
