"""Every proposal on record can be derived again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nas_attn.engine.audit import derive_again, running_then
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.trial_record import DRIVER, PROPOSAL, NewTrial, parse_trial
from nas_attn.trials.job import TrialJob, TrialResult
from tests.helpers.fakes import (
    OBJECTIVES,
    FakeExecutor,
    loss_of,
    make_loop,
)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "sampler",
    [
        "tpe",
        "nsga2",
        pytest.param("gp", marks=[pytest.mark.slow, pytest.mark.long]),
        "random",
        "stratified_random",
        "known_cost",
    ],
)
def test_all_proposals_of_many_workers_can_be_derived_again(sampler: str, tmp_path: Path) -> None:
    trials = 16 if sampler == "gp" else 30
    settings = {"trials": trials, "sampler": sampler, "stopping": {"rule": "halving"}}
    loop = make_loop(tmp_path, **settings)
    FakeExecutor(workers=4, error=lambda job: "broken" if job.number in (4, 9) else None).run(loop)
    fresh = make_loop(tmp_path / "fresh", **settings)
    derived = list(derive_again(fresh.proposer, loop.store.trials()))
    assert len(derived) >= trials
    assert all(derivation.agrees for derivation in derived)


def test_proposals_of_several_drivers_can_be_derived_again(tmp_path: Path) -> None:
    """Each sees the other's trials end at another time than the other does."""
    settings = {"trials": 24, "sampler": "tpe", "startup_trials": 4}
    drivers = [make_loop(tmp_path, **settings) for _ in range(3)]
    generator = random.Random(3)
    running: list[tuple[SearchLoop, TrialJob]] = []
    while not all(driver.is_over() for driver in drivers):
        driver = generator.choice(drivers)
        driver._looked = driver._read_again = 0.0
        if len(running) < 6 and (job := driver.next_job()) is not None:
            running.append((driver, job))
        if running and generator.random() < 0.5:
            ran_by, job = running.pop(generator.randrange(len(running)))
            ran_by.finish(job.number, TrialResult(losses=(loss_of(job),), seconds=1.0))
    trials = drivers[0].store.trials()
    assert len({trial.driver for trial in trials}) == 3
    fresh = make_loop(tmp_path / "fresh", **settings)
    derived = list(derive_again(fresh.proposer, trials))
    assert len(derived) == sum(not trial.is_superseded for trial in trials) >= 24
    assert all(derivation.agrees for derivation in derived)


def test_a_proposal_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=12, seed=1)
    FakeExecutor(workers=3).run(loop)
    other = make_loop(tmp_path / "other", trials=12, seed=2)
    derived = list(derive_again(other.proposer, loop.store.trials()))
    assert not all(derivation.agrees for derivation in derived)


def test_who_ran_as_a_proposal_was_made() -> None:
    """The table in the module's docstring: two drivers, each of which hears late of the other."""
    table = [
        ("A", {"running": []}, set()),
        ("A", {"over": []}, {0}),
        ("B", {"running": [0, 1]}, {0, 1}),
        ("A", {"over": [0]}, {1, 2}),
        ("B", {"over": [2]}, {0, 1, 3}),
        ("A", {"over": [1]}, {2, 3, 4}),
    ]
    trials = [
        parse_trial(
            NewTrial(attributes={DRIVER: driver, PROPOSAL: {"number": number, **kept}}).frozen(),
            OBJECTIVES,
        )
        for number, (driver, kept, _) in enumerate(table)
    ]
    assert list(running_then(trials)) == [running for _, _, running in table]
