"""Proposals follow from the history alone: a queue, given plans, interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas_attn.engine.audit import derive_again
from nas_attn.engine.candidates import FixedCandidates, Proposer
from nas_attn.trials.job import TrialJob
from tests.helpers.fakes import (
    BASELINE,
    OBJECTIVES,
    FakeExecutor,
    kill_drivers,
    make_loop,
)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_an_interruption_changes_no_proposal(sampler: str, tmp_path: Path) -> None:
    whole = make_loop(tmp_path / "whole", trials=20, sampler=sampler)
    FakeExecutor(workers=1).run(whole)
    for die_after in (3, 5, 6):
        broken = make_loop(tmp_path / "broken", trials=20, sampler=sampler)
        with pytest.raises(KeyboardInterrupt):
            FakeExecutor(workers=1, die_after=die_after).run(broken)
    again = make_loop(tmp_path / "broken", trials=20, sampler=sampler)
    FakeExecutor(workers=1).run(again)
    kill_drivers()
    assert [t.plan for t in whole.store.trials()] == [t.plan for t in again.store.trials()]
    assert [t.loss for t in whole.store.trials()] == [t.loss for t in again.store.trials()]


def test_a_queue_over_a_limit_is_passed_over(tmp_path: Path) -> None:
    """Such as points that were predicted before a limit was set."""
    objectives = replace(OBJECTIVES, limits={"total": 60_000})
    loop = make_loop(tmp_path, objectives=objectives, trials=6)
    space, costs = loop.proposer.space, loop.proposer.costs
    plans = [space.plan([unit.alternatives[i] for unit in space.units]) for i in (0, 10, 1, 9, 3)]
    allowed = [plan for plan in plans if costs.known(plan)["total"] <= 60_000]
    assert 1 < len(allowed) < len(plans)
    loop.proposer = Proposer(space, costs, objectives, loop.config, BASELINE, queue=plans)
    FakeExecutor(workers=1).run(loop)
    trials = loop.store.trials()
    assert [trial.plan for trial in trials[1 : 1 + len(allowed)]] == allowed
    assert sum(trial.uses_budget for trial in trials) == 6


@pytest.mark.parametrize("sampler", ["tpe", "stratified_random"])
def test_a_queue_comes_first_and_is_derived_again(sampler: str, tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=9, sampler=sampler, startup_trials=2)
    proposer = loop.proposer
    every = [
        proposer.space.plan([u.alternatives[i] for u in proposer.space.units]) for i in (3, 1, 2)
    ]
    arguments = (proposer.space, proposer.costs, proposer.objectives, proposer.config)
    queue = [every[0], BASELINE, *every[1:]]
    loop.proposer = Proposer(*arguments, BASELINE, queue)
    FakeExecutor(workers=2).run(loop)
    trials = loop.store.trials()
    assert [trial.plan for trial in trials[:4]] == [BASELINE, *every]
    assert all(trial.params for trial in trials[1:4]), "the sampler learns from them"
    assert len([trial for trial in trials if trial.is_trained]) == 9
    derived = derive_again(Proposer(*arguments, BASELINE, queue), trials)
    assert all(derivation.agrees for derivation in derived)


def test_given_plans_that_failed_are_proposed_again_by_the_next_search(tmp_path: Path) -> None:
    first = make_loop(tmp_path, trials=4)
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
        loop = make_loop(tmp_path, trials=budget)
        loop.proposer = FixedCandidates([proposer.baseline, *wanted], *arguments, proposer.baseline)
        loop._look()
        FakeExecutor(workers=1, error=fail_the_second).run(loop)
        kill_drivers()
    trials = loop.store.trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert trials[3].plan == trials[2].plan == wanted[1]
