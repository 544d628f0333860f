"""What losses, curves and costs of trials tell of plans that were not tried."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from nas_attn.analysis.hypervolume import growth, progress_of
from nas_attn.analysis.random_band import keep_band, random_band, recorded_band
from nas_attn.analysis.trials import Trials
from nas_attn.engine.candidates import Proposer
from nas_attn.engine.config import SearchConfig
from nas_attn.engine.known_costs import changes_to_keep, predicted_changes
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.sensitivity import Measured, all_changes
from nas_attn.pareto import hypervolume
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.space import Votes
from tests.helpers.fakes import FakeExecutor, make_loop, make_sizer, make_space, trained


def searched(folder: Path, **settings: object) -> SearchLoop:
    loop = make_loop(folder, **{"trials": 24, "sampler": "known_cost", **settings})
    FakeExecutor(workers=3).run(loop)
    return loop


def every_plan(loop: SearchLoop) -> list[AttentionPlan]:
    space = loop.proposer.space
    return [space.plan(o) for o in itertools.product(*(u.alternatives for u in space.units))]


def loss_of_plan(plan: AttentionPlan) -> float:
    return 2e5 / make_sizer().size(plan).total + int(plan.digest[:4], 16) / 65536


def test_a_stopped_trial_counts_by_where_it_would_have_ended(tmp_path: Path) -> None:
    """Fake curves are all alike, so the forecast is exact but for its penalty."""
    loop = searched(tmp_path, stopping={"rule": "halving"})
    trials = loop.store.trials()
    stopped = [trial for trial in trials if trial.rungs and not trial.is_trained]
    assert len(stopped) >= 3
    history = loop.proposer.known_cost.history(trained(trials), stopped, [])
    assert len(history.losses) == len(trained(trials)) + len(stopped)
    ends = [loss_of_plan(trial.plan) for trial in stopped if trial.plan is not None]
    foretold = history.losses[-len(stopped) :]
    assert foretold == pytest.approx(ends, abs=0.1)
    assert history.noise is not None
    assert min(history.noise[-len(stopped) :]) > max(history.noise[: -len(stopped)])


def test_proposals_are_of_plans_that_are_free_and_within_the_limit(tmp_path: Path) -> None:
    loop = searched(tmp_path)
    plans = [trial.plan for trial in loop.store.trials()]
    assert len(set(plans)) == len(plans) == 24
    assert SearchConfig.model_validate({"sampler": "known_cost"}).startup_trials == 3


def test_predictions_of_conversions_lead_proposals(tmp_path: Path) -> None:
    """Single changes are found by their plans; what could not be measured counts as the worst."""
    plain = searched(tmp_path / "plain").proposer
    space, baseline = plain.space, plain.baseline
    changes = {plan.digest: loss_of_plan(plan) for _, _, plan in all_changes(space, baseline)}
    unknown = next(plan for _, _, plan in all_changes(space, baseline) if plan != baseline)
    del changes[unknown.digest]
    found = predicted_changes(space, baseline, changes)
    for unit, number, plan in all_changes(space, baseline):
        wanted = 0.0 if plan == baseline else changes.get(plan.digest, max(found[unit]))
        assert found[unit][number] == wanted
    assert predicted_changes(space, baseline, {}) == []
    told = Proposer(
        space, plain.costs, plain.objectives, plain.config, baseline, predicted=changes
    ).known_cost
    history = told.history(trained(searched(tmp_path / "told").store.trials())[:6], [], [])
    draws = [np.random.default_rng(1), np.random.default_rng(1)]
    one, other = (
        known._proposer.surrogate(history, draw)
        for known, draw in zip((plain.known_cost, told), draws, strict=True)
    )
    assert one.variances[5] != other.variances[5] and len(one.variances) == 9


def test_what_was_measured_after_a_vote_is_known_of_the_vote() -> None:
    """Two votes that leave the same heads are one change of the model, and two choices."""
    votes = {"keep": ["pillars", "threshold"], "vote_threshold": [0.5]}
    offered = make_space("site", {"multi_head": {}, "grouped_head": votes})
    baseline = AttentionPlan.uniform(AttentionChoice("multi_head"), tuple(offered.shapes))
    left = AttentionChoice.of("grouped_head", kept_heads=1, heads="0", alpha=0.0, beta=0.0)
    settled = offered.settled(
        Votes(
            {
                (f"{site}.{layer}", choice): left
                for _, site, choice in offered.choices()
                for layer in range(offered.shapes[site].num_layers)
                if choice.scheme == "grouped_head"
            }
        )
    )
    plans = {plan for _, _, plan in all_changes(settled, baseline) if plan != baseline}
    expected = {
        plan: Measured(0.1 * (1 + n), 0.01) for n, plan in enumerate(sorted(plans, key=str))
    }
    assert len(expected) == 3 < sum(len(unit.alternatives) - 1 for unit in offered.units)
    for space in (offered, settled):  # a search from a trained baseline has settled votes, too
        kept = changes_to_keep(space, settled, baseline, expected)
        found = predicted_changes(space, baseline, kept)
        for (unit, number, _), (_, _, plan) in zip(
            all_changes(space, baseline), all_changes(settled, baseline), strict=True
        ):
            known = expected.get(plan, Measured(0.0, 0.0))
            assert found[unit][number] == pytest.approx(known.change)


def test_random_searches_are_drawn_around_what_was_found(tmp_path: Path) -> None:
    loop = searched(tmp_path)
    trials = Trials.of(loop.store, tmp_path)
    band = random_band(trials, loop.proposer.known_cost)
    progress = progress_of(trials)
    assert band is not None and progress is not None
    low, middle, high = np.array([band.low, band.middle, band.high])
    assert len(middle) == 24 and (np.diff(middle) >= 0).all()
    assert (low <= middle).all() and (middle <= high).all() and low[-1] < high[-1]
    plans, generator = every_plan(loop), np.random.default_rng(3)
    assert trials.baseline is not None and trials.baseline.point is not None
    truly = []
    for _ in range(100):
        chosen = [plans[index] for index in generator.integers(0, len(plans), 23)]
        points = [(loss_of_plan(plan), float(make_sizer().size(plan).total)) for plan in chosen]
        point = (trials.baseline.point[0], trials.baseline.point[1])
        truly.append(growth([point, *points], progress.reference.point)[-1])
    assert low[-1] <= np.quantile(truly, 0.6) <= high[-1]
    keep_band(loop.store, band)
    kept = recorded_band(loop.store.metadata())
    assert kept == band
    assert kept is not None and "random proposals would have reached" in kept.words(progress)


def test_random_proposals_have_the_costs_of_plans(tmp_path: Path) -> None:
    loop = searched(tmp_path)
    known = loop.proposer.known_cost
    ((costs, losses),) = known.random_searches(trained(loop.store.trials()), 200, 1)
    assert known.random_searches([], 200, 1) == []
    every = {float(make_sizer().size(plan).total) for plan in every_plan(loop)}
    assert set(costs.tolist()) <= every and len(set(costs.tolist())) > 5
    assert np.corrcoef(costs, losses)[0, 1] < -0.3  # the larger the better, as in what was tried


def test_growth_is_the_hypervolume_of_each_beginning() -> None:
    points = [(point[0], point[1]) for point in np.random.default_rng(2).random((12, 2)).tolist()]
    grown = growth(points, (0.9, 0.8))
    assert grown == pytest.approx(
        [hypervolume(points[: count + 1], (0.9, 0.8)) for count in range(12)]
    )
