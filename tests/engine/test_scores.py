"""What scores by gradients let expect, and the plans next to a predicted point."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from nas_attn.engine.scores import SCORES, expected_changes, keep_scores, scores_of
from nas_attn.engine.sensitivity import Measured
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.swaps import swaps
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.single_changes import COSTS, make_model, plans_of

PLANS = [
    AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=size))
    for size in range(1, 31)
]


def test_measurements_say_by_how_much_scores_fall_short() -> None:
    scores = {plan: Measured(0.01 * n, 1e-4) for n, plan in enumerate(PLANS, start=1)}
    true = {plan: 1.3 * s.change + 2.0 * s.change**2 for plan, s in scores.items()}
    measured = {plan: Measured(true[plan], 1e-4) for plan in PLANS[::4]}
    found = expected_changes(scores, measured)
    assert set(found) == set(PLANS)
    for plan in PLANS:
        assert found[plan].change == pytest.approx(true[plan])
    assert found[PLANS[0]] is measured[PLANS[0]]
    assert found[PLANS[1]].error == pytest.approx(1.3e-4, rel=0.1)


def test_scores_stand_as_they_are_while_little_is_measured() -> None:
    scores = {plan: Measured(0.01 * n, 1e-4) for n, plan in enumerate(PLANS, start=1)}
    measured = {plan: Measured(1.0, 1e-4) for plan in PLANS[:5]}
    found = expected_changes(scores, measured)
    assert found[PLANS[9]].change == pytest.approx(0.1)
    # What is within its noise says nothing of a factor.
    noisy = {plan: Measured(1.0, 1.0) for plan in PLANS[:20]}
    assert expected_changes(scores, noisy)[PLANS[25]].change == pytest.approx(0.26)
    assert expected_changes({}, measured) == measured


def test_the_spread_of_what_is_known_is_an_error() -> None:
    generator = random.Random(1)
    scores = {plan: Measured(0.01 * n, 1e-5) for n, plan in enumerate(PLANS, start=1)}
    measured = {
        plan: Measured(scores[plan].change * generator.choice((0.9, 1.1)), 1e-5)
        for plan in PLANS[:20]
    }
    found = expected_changes(scores, measured)
    for plan in PLANS[20:]:
        assert found[plan].error / found[plan].change == pytest.approx(0.1, rel=0.3)


def test_the_record_keeps_scores(tmp_path: Path) -> None:
    store = TrialStore("scores", open_storage(None, tmp_path), OBJECTIVES, create=True)
    assert scores_of(store) == {}
    keep_scores(store, {PLANS[0]: Measured(0.123456789, 0.000123456)})
    keep_scores(store, {PLANS[1]: Measured(-1e-9, 0.0)})
    again = TrialStore("scores", open_storage(None, tmp_path), OBJECTIVES)
    assert scores_of(again) == {
        PLANS[0].digest: Measured(0.123457, 0.000123),
        PLANS[1].digest: Measured(-1e-9, 0.0),
    }
    assert SCORES in again.metadata()


@pytest.mark.parametrize("max_schemes", [None, 2])
@pytest.mark.parametrize("limits", [{}, {"cache_bytes": 9900}])
def test_swaps_are_the_best_next_to_a_point(
    max_schemes: int | None, limits: dict[str, float]
) -> None:
    """All plans of the space, looked through one by one, have none that is better."""
    space, model, _ = make_model()
    model = type(model)(
        *(space, model.baseline, COSTS, "total", None),
        {c: e.measured for c, e in _measured(model).items()},
        tuple(limits),
    )
    front = model.front(max_schemes=max_schemes, limits=limits)
    assert front
    for point in front:
        near = []
        for plan in plans_of(space):
            here, there = model.chosen(point.plan), model.chosen(plan)
            assert here is not None and there is not None
            known = COSTS(plan)
            schemes = {c.scheme for _, choices in plan for c in choices}
            if (
                1 <= sum(a != b for a, b in zip(here, there, strict=True)) <= 2
                and known["total"] <= point.cost
                and all(known[name] <= most for name, most in limits.items())
                and len(schemes) <= (max_schemes or 9)
            ):
                predicted = model.predict(plan)
                assert predicted is not None
                near.append(predicted.change)
        found = swaps(model, point, 5, max_schemes=max_schemes, limits=limits)
        assert [p.change for p in found] == pytest.approx(sorted(near)[:5], abs=1e-5)
        assert all(model.predict(p.plan).change == p.change for p in found)  # type: ignore[union-attr]
        assert all(COSTS(p.plan)["total"] == p.cost <= point.cost for p in found)


def _measured(model):  # type: ignore[no-untyped-def]
    """Single changes with what was measured of them."""
    found = {}
    for unit, table in enumerate(model.tables):
        for place, entry in table.items():
            if entry.is_change:
                picked = [
                    next(p for p, e in of_unit.items() if not e.is_change) if n != unit else place
                    for n, of_unit in enumerate(model.tables)
                ]
                found[model.prediction(picked).plan] = entry
    return found


def test_the_first_layer_stays() -> None:
    space, model, _ = make_model("layer")
    point = model.front(keep_first_layer=True)[0]
    for found in swaps(model, point, 20, keep_first_layer=True):
        for site, shape in space.shapes.items():
            assert str(found.plan.layers(site, shape.num_layers)[0]) == "multi_head"
    assert any(
        str(p.plan.layers(site, shape.num_layers)[0]) != "multi_head"
        for p, (site, shape) in itertools.product(swaps(model, point, 20), space.shapes.items())
    )


def test_parts_are_the_single_changes() -> None:
    space, model, _ = make_model()
    for plan in plans_of(space)[::7]:
        parts = model.parts(plan)
        assert len(parts) == sum(str(c) != "multi_head" for _, (c, *_) in plan)
        whole, single = model.predict(plan), [model.predict(part) for part in parts]
        assert whole is not None
        assert whole.change == pytest.approx(sum(p.change for p in single if p is not None))
