"""Proposals follow from the history alone, and can be derived again."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_attn.search.proposals import derive_again
from tests.search.fakes import FakeExecutor, kill_drivers, make_conductor


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
