"""Halving: ranks against a brute-force oracle on unsorted data, and decisions after a restart."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from optuna.trial import TrialState
from pydantic import ValidationError

from nas_attn.engine.config import SearchConfig, StoppingConfig
from nas_attn.engine.stopping import Halving, Rung
from nas_attn.pareto import dominates
from nas_attn.trials.job import Validation
from tests.helpers.fakes import FakeExecutor, kill_drivers, make_loop


def count_dominators(points: list[tuple[float, ...]], index: int) -> int:
    return sum(dominates(other, points[index]) for other in points)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_those_of_an_oracle(width: int, seed: int) -> None:
    """Coarse numbers, so that equal coordinates and equal points are among them."""
    generator = random.Random(seed)
    points: list[tuple[float, ...]] = []
    rung = Rung()
    for number in range(150):
        points.append(tuple(float(generator.randrange(12)) for _ in range(width)))
        mine, better = rung.add(number, points[-1])
        ranks = [count_dominators(points, index) for index in range(len(points))]
        assert mine == ranks[-1]
        assert better == sum(rank < mine for rank in ranks[:-1])


def test_newcomers_that_nothing_dominates_always_go_on() -> None:
    """The defect of syne-tune 0.16 (indices for ranks) let 45 % of them on."""
    generator = random.Random(1)
    halving = Halving(StoppingConfig(rule="halving"))
    points: list[tuple[float, ...]] = []
    went_on = {True: [0, 0], False: [0, 0]}
    for number in range(400):
        point = (generator.random(), generator.random())
        points.append(point)
        decision = halving.enter(number, 1, point[0], point[1:])
        assert decision is not None
        is_best = count_dominators(points, number) == 0
        went_on[is_best][0] += decision.goes_on
        went_on[is_best][1] += 1
    assert went_on[True][0] == went_on[True][1] > 3
    share = went_on[False][0] / went_on[False][1]
    assert 0.2 < share < 0.5, "about one in three of all go on"


def test_a_small_model_is_not_stopped_for_being_small() -> None:
    halving = Halving(StoppingConfig(rule="halving"))
    for number in range(30):
        assert halving.enter(number, 1, 1.0 + number / 100, (1000.0 - number,))
    decision = halving.enter(99, 1, 50.0, (1.0,))
    assert decision is not None
    assert decision.goes_on
    worse = halving.enter(100, 1, 50.0, (2000.0,))
    assert worse is not None
    assert not worse.goes_on
    assert worse.reason == "stopped early: dominated by 31 of 32 trials at validation 1 (rank 32)"


def test_rungs() -> None:
    halving = Halving(StoppingConfig(rule="halving", first=2, factor=3))
    assert [n for n in range(1, 60) if halving.is_rung(n)] == [2, 6, 18, 54]
    assert halving.enter(1, 3, 1.0, (1.0,)) is None
    assert halving.enter(1, 2, 1.0, (1.0,)) is not None
    assert halving.enter(1, 2, 0.0, (0.0,)) is None, "a trial comes to a rung once"


@pytest.mark.parametrize("rule", ["asha", "hyperband", "median", "ASHA", "successive_halving"])
def test_rules_for_one_objective_are_refused(rule: str) -> None:
    with pytest.raises(ValidationError, match="ranks by one objective"):
        SearchConfig.model_validate({"stopping": {"rule": rule}})


def test_stopped_trials_are_pruned_with_values_and_reason(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=40, stopping={"rule": "halving"})
    FakeExecutor().run(loop)
    trials = loop.store.trials()
    stopped = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(stopped) > 5
    for trial in stopped:
        assert trial.loss is None
        assert not trial.is_trained
        assert trial.uses_budget
        assert (trial.reason or "").startswith("stopped early: dominated by ")
        assert len(trial.curve) in (1, 3)
        assert all(math.isfinite(loss) for loss in trial.curve.values())
    finished = [trial for trial in trials if trial.is_trained]
    assert all(len(trial.curve) == 9 for trial in finished)
    assert any(trial.is_baseline for trial in finished)
    assert len(finished) + len(stopped) == 40


def test_a_trial_in_its_last_epoch_is_not_stopped(tmp_path: Path) -> None:
    """Its training is done, and the result would be thrown away."""
    loop = make_loop(tmp_path, trials=12, stopping={"rule": "halving", "first": 3})
    jobs = [job for _ in range(12) if (job := loop.next_job()) is not None]
    for place, job in enumerate(jobs):
        for validation in (3, 9):
            # The later, the worse: the last third of the trials would never pass a rung.
            news = Validation(
                seed=1,
                num_updates=validation,
                loss=1.0 + place if validation == 3 else 1.0 + 100 * place,
                validation=validation,
                is_last=validation == 9,
            )
            goes_on = loop.progress(job.number, news)
            assert goes_on or not news.is_last
    ended = loop.store.refresh(jobs[-1].number)
    assert ended.rungs["9"]["better"] >= 4, "it is the worst there, and went on"


@pytest.mark.parametrize(
    ("rule", "die_after"),
    [("halving", 1), ("halving", 6), ("halving", 17), ("halving", 25), ("forecast", 17)],
)
def test_decisions_after_a_restart_are_those_of_an_unbroken_search(
    rule: str, die_after: int, tmp_path: Path
) -> None:
    settings = {"trials": 30, "stopping": {"rule": rule}, "sampler": "tpe"}
    whole = make_loop(tmp_path / "whole", **settings)
    FakeExecutor(workers=1).run(whole)
    broken = make_loop(tmp_path / "broken", **settings)
    with pytest.raises(KeyboardInterrupt):
        FakeExecutor(workers=1, die_after=die_after).run(broken)
    again = make_loop(tmp_path / "broken", **settings)
    FakeExecutor(workers=1).run(again)
    kill_drivers()
    assert any(trial.was_stopped for trial in whole.store.trials())
    pairs = zip(whole.store.trials(), again.store.trials(), strict=True)
    for left, right in pairs:
        assert left.plan == right.plan
        assert left.rungs == right.rungs
        assert (left.state, left.loss, left.reason) == (right.state, right.loss, right.reason)
