"""Several drivers of one study: who runs which trial, and who lives."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from nas_attn.engine import leases
from nas_attn.engine.leases import TrialLeases, live_drivers
from nas_attn.engine.trial_record import DRIVER, PLAN, NewTrial
from nas_attn.trials.job import TrialJob, TrialResult, Validation
from tests.helpers.fakes import (
    BASELINE,
    WARM,
    FakeExecutor,
    begin,
    kill_drivers,
    make_loop,
    trained,
)


def test_one_driver_leaves_and_another_goes_on_without_a_pause(tmp_path: Path) -> None:
    first = make_loop(tmp_path)
    job = first.next_job()
    assert job is not None
    second = make_loop(tmp_path)
    taken = second.next_job()
    assert taken is not None
    assert taken.number != job.number, "the first driver lives"
    first.leases.close()
    second._looked = 0.0
    taken = second.next_job()
    assert taken is not None
    assert taken.number == job.number
    first.finish(job.number, TrialResult(losses=(0.1,), seconds=1.0))
    second.finish(job.number, TrialResult(losses=(0.2,), seconds=1.0))
    trials = second.store.trials()
    assert trials[job.number].loss == 0.2, "what a driver says of a trial it has lost is ignored"


def test_a_trial_that_was_taken_over_is_not_trained_on(tmp_path: Path) -> None:
    """Whether the other driver still trains it or has finished it."""
    for finished in (False, True):
        folder = tmp_path / str(finished)
        first = make_loop(folder, trials=4)
        job = first.next_job()
        assert job is not None
        first.leases.close()
        second = make_loop(folder, trials=4)
        taken = second.next_job()
        assert taken is not None
        assert taken.number == job.number
        if finished:
            second.finish(job.number, TrialResult(losses=(0.2,), seconds=1.0))
        news = Validation(seed=1, num_updates=5, loss=1.0)
        assert not first.progress(job.number, news)
        first.finish(job.number, TrialResult(seconds=1.0))
        assert second.store.refresh(job.number).curve == {}


def test_two_drivers_share_the_work(tmp_path: Path) -> None:
    """Turn by turn, each with proposals from the history that it sees, none of them twice."""
    drivers = [make_loop(tmp_path, trials=20) for _ in range(2)]
    ran: list[tuple[int, int]] = []
    waiting: list[tuple[int, TrialJob]] = []
    while not all(driver.is_over() for driver in drivers):
        for index, driver in enumerate(drivers):
            driver._looked = 0.0
            job = driver.next_job()
            if job is not None:
                waiting.append((index, job))
        for index, job in waiting:
            ran.append((index, job.number))
            drivers[index].finish(
                job.number,
                TrialResult(losses=(1.0 / job.number if job.number else 2.0,), seconds=1.0),
            )
        waiting.clear()
    trials = drivers[0].store.trials()
    done = trained(trials)
    assert len(done) == len(ran) == 20
    assert len({trial.plan for trial in done}) == 20
    assert {index for index, _ in ran} == {0, 1}
    assert all(trial.state.is_finished() for trial in trials)
    assert all(trial.reason for trial in trials if trial.is_superseded)


def test_of_two_claims_the_first_holds(tmp_path: Path) -> None:
    first = make_loop(tmp_path)
    job = first.next_job()
    assert job is not None
    kill_drivers()
    others = [make_loop(tmp_path) for _ in range(3)]
    jobs = [driver.next_job() for driver in others]
    assert [job is not None and job.number for job in jobs].count(0) == 1


def test_warm_trials_wait_for_another_driver_s_baseline(tmp_path: Path) -> None:
    first, second = (make_loop(tmp_path, trials=4, **WARM) for _ in range(2))
    job = first.next_job()
    assert job is not None
    assert second.next_job() is None
    first.finish(job.number, TrialResult(losses=(0.5,), seconds=1.0))
    second._looked = second._read_again = 0.0
    assert second.next_job() is not None


def test_a_driver_that_was_slower_withdraws(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    store = loop.store
    late = {PLAN: BASELINE.to_json(), DRIVER: "other", "proposal": {"number": 7, "running": []}}
    number = store.create(NewTrial(attributes=late))
    assert number == 0
    FakeExecutor().run(loop)
    trials = store.trials()
    assert trials[0].is_superseded
    assert trials[0].state == TrialState.FAIL
    assert len(trained(trials)) == 12


def test_a_repeat_that_came_second_is_over_already(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=6)
    FakeExecutor().run(loop)
    proposal = loop.proposer.propose()
    assert proposal is not None
    late = replace(proposal, plan=BASELINE, duplicate_of=0, number=proposal.number - 1)
    assert loop._begin(late) is None
    trial = loop.store.trials()[proposal.number]
    assert trial.is_superseded
    assert trial.duplicate_of == 0
    assert not trial.uses_budget


def test_a_stopped_driver_that_keeps_trials_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lives, so its trials are not taken over; the other driver says for whom it waits."""
    first = make_loop(tmp_path)
    assert first.next_job() is not None
    other = make_loop(tmp_path)
    monkeypatch.setattr(leases, "is_stopped", lambda pid: pid == os.getpid())
    caplog.clear()
    other._look()
    pid = os.getpid()
    assert f"trials 0 wait for the driver {first.leases.driver}, which is stopped" in caplog.text
    assert f"kill -CONT {pid} lets it go on" in caplog.text
    other._look()
    assert caplog.text.count("which is stopped") == 1
    kill_drivers()


def test_where_locks_do_not_work_drivers_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks nobody seems dead, nor alive for ever."""
    store = begin(tmp_path)
    driver = TrialLeases(store, tmp_path, heartbeat_seconds=60, grace_seconds=180)

    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        entries = store.metadata()
        at = entries[f"driver {driver.driver}"]["at"]
        assert live_drivers(entries, now=at + 10, grace_seconds=60) == [driver.driver]
        assert live_drivers(entries, now=at + 70, grace_seconds=60) == []
    driver.close()
