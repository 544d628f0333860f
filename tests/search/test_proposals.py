"""Proposals follow from the history alone, and can be derived again."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from nas_attn.search.candidates import GivenPlans, Proposer, derive_again
from nas_attn.search.loop import Conductor
from nas_attn.trials.job import TrialJob, TrialResult
from tests.search.fakes import (
    BASELINE,
    OBJECTIVES,
    FakeExecutor,
    kill_drivers,
    loss_of,
    make_conductor,
)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "stratified_random"])
def test_all_proposals_of_many_workers_can_be_derived_again(sampler: str, tmp_path: Path) -> None:
    trials = 16 if sampler == "gp" else 30
    settings = {"trials": trials, "sampler": sampler, "stopping": {"rule": "halving"}}
    conductor = make_conductor(tmp_path, **settings)
    FakeExecutor(workers=4, error=lambda job: "broken" if job.number in (4, 9) else None).run(
        conductor
    )
    fresh = make_conductor(tmp_path / "fresh", **settings)
    derived = list(derive_again(fresh.proposer, conductor.record.trials()))
    assert len(derived) >= trials
    assert all(derivation.agrees for derivation in derived)


def test_proposals_of_several_drivers_can_be_derived_again(tmp_path: Path) -> None:
    """Each sees the other's trials end at another time than the other does."""
    settings = {"trials": 24, "sampler": "tpe", "startup_trials": 4}
    drivers = [make_conductor(tmp_path, **settings) for _ in range(3)]
    generator = random.Random(3)
    running: list[tuple[Conductor, TrialJob]] = []
    while not all(driver.is_over() for driver in drivers):
        driver = generator.choice(drivers)
        driver._looked = driver._read_again = 0.0
        if len(running) < 6 and (job := driver.next_job()) is not None:
            running.append((driver, job))
        if running and generator.random() < 0.5:
            ran_by, job = running.pop(generator.randrange(len(running)))
            ran_by.finish(job.number, TrialResult(losses=(loss_of(job),), seconds=1.0))
    trials = drivers[0].record.trials()
    assert len({trial.driver for trial in trials}) == 3
    fresh = make_conductor(tmp_path / "fresh", **settings)
    derived = list(derive_again(fresh.proposer, trials))
    assert len(derived) == sum(not trial.is_withdrawn for trial in trials) >= 24
    assert all(derivation.agrees for derivation in derived)


def test_a_proposal_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=12, seed=1)
    FakeExecutor(workers=3).run(conductor)
    other = make_conductor(tmp_path / "other", trials=12, seed=2)
    derived = list(derive_again(other.proposer, conductor.record.trials()))
    assert not all(derivation.agrees for derivation in derived)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_an_interruption_changes_no_proposal(sampler: str, tmp_path: Path) -> None:
    whole = make_conductor(tmp_path / "whole", trials=20, sampler=sampler)
    FakeExecutor(workers=1).run(whole)
    for die_after in (3, 5, 6):
        broken = make_conductor(tmp_path / "broken", trials=20, sampler=sampler)
        with pytest.raises(KeyboardInterrupt):
            FakeExecutor(workers=1, die_after=die_after).run(broken)
    again = make_conductor(tmp_path / "broken", trials=20, sampler=sampler)
    FakeExecutor(workers=1).run(again)
    kill_drivers()
    assert [t.plan for t in whole.record.trials()] == [t.plan for t in again.record.trials()]
    assert [t.loss for t in whole.record.trials()] == [t.loss for t in again.record.trials()]


def test_a_queue_over_a_limit_is_passed_over(tmp_path: Path) -> None:
    """Such as points that were predicted before a limit was set."""
    objectives = replace(OBJECTIVES, limits={"total": 60_000})
    conductor = make_conductor(tmp_path, objectives=objectives, trials=6)
    space, costs = conductor.proposer.space, conductor.proposer.costs
    plans = [space.plan([unit.alternatives[i] for unit in space.units]) for i in (0, 10, 1, 9, 3)]
    allowed = [plan for plan in plans if costs.known(plan)["total"] <= 60_000]
    assert 1 < len(allowed) < len(plans)
    conductor.proposer = Proposer(space, costs, objectives, conductor.config, BASELINE, queue=plans)
    FakeExecutor(workers=1).run(conductor)
    trials = conductor.record.trials()
    assert [trial.plan for trial in trials[1 : 1 + len(allowed)]] == allowed
    assert sum(trial.counts for trial in trials) == 6


@pytest.mark.parametrize("sampler", ["tpe", "stratified_random"])
def test_a_queue_comes_first_and_is_derived_again(sampler: str, tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=9, sampler=sampler, startup_trials=2)
    proposer = conductor.proposer
    every = [
        proposer.space.plan([u.alternatives[i] for u in proposer.space.units]) for i in (3, 1, 2)
    ]
    arguments = (proposer.space, proposer.costs, proposer.objectives, proposer.config)
    queue = [every[0], BASELINE, *every[1:]]
    conductor.proposer = Proposer(*arguments, BASELINE, queue)
    FakeExecutor(workers=2).run(conductor)
    trials = conductor.record.trials()
    assert [trial.plan for trial in trials[:4]] == [BASELINE, *every]
    assert all(trial.params for trial in trials[1:4]), "the sampler learns from them"
    assert len([trial for trial in trials if trial.is_trained]) == 9
    derived = derive_again(Proposer(*arguments, BASELINE, queue), trials)
    assert all(derivation.agrees for derivation in derived)


def test_given_plans_that_failed_are_proposed_again_by_the_next_search(tmp_path: Path) -> None:
    first = make_conductor(tmp_path, trials=4)
    proposer = first.proposer
    arguments = (proposer.space, proposer.costs, proposer.objectives, proposer.config)
    wanted = [
        first.proposer.space.plan([u.alternatives[i] for u in proposer.space.units]) for i in (1, 2)
    ]
    failed: list[int] = []

    def fail_the_second(job: TrialJob) -> str | None:
        if job.number == 2 and not failed:
            failed.append(job.number)
            return "broken"
        return None

    for budget in (3, 4):
        conductor = make_conductor(tmp_path, trials=budget)
        conductor.proposer = GivenPlans([proposer.baseline, *wanted], *arguments, proposer.baseline)
        conductor._look()
        FakeExecutor(workers=1, error=fail_the_second).run(conductor)
        kill_drivers()
    trials = conductor.record.trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert trials[3].plan == trials[2].plan == wanted[1]
