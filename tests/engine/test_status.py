"""Where a study stands: counts, rate, time left, and which drivers live."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nas_attn.engine.leases import live_drivers
from nas_attn.engine.snapshot import RunningTrial, Snapshot, Tally
from nas_attn.engine.status import BUDGET, RunningStatus, Status, read_status
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.trials.job import Validation
from nas_attn.trials.updates import Updates, latest_updates
from nas_attn.workflows.events import LogEvents
from tests.helpers.fakes import (
    BASELINE,
    OBJECTIVES,
    FakeExecutor,
    fail_trial_3,
    kill_drivers,
    make_loop,
)

HOUR = 3600.0


@pytest.fixture(autouse=True)
def _drivers_end() -> Iterator[None]:
    yield
    kill_drivers()


def read(store: TrialStore) -> Status:
    return read_status(store, trials=12, grace_seconds=60.0)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Sequence[TrialRecord]:
    loop = make_loop(tmp_path_factory.mktemp("search"))
    FakeExecutor(error=fail_trial_3).run(loop)
    return list(loop.store.trials())


def test_counts_of_a_search_that_has_ended(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, stopping={"rule": "halving"})
    FakeExecutor(error=fail_trial_3).run(loop)
    status, snapshot = read(loop.store), loop.snapshot()
    assert status.budget == 12
    assert len(status.over) == 12
    assert len(status.finished) == snapshot.finished
    assert len(status.stopped) == snapshot.stopped
    assert [trial.number for trial in status.failed] == [3]
    assert not status.unfinished
    assert tuple(status.front) == snapshot.front
    assert status.baseline == snapshot.baseline
    assert status.seconds_left is None
    assert status.trials_an_hour is not None
    assert list(snapshot.trained) == status.finished
    assert list(snapshot.latest) == status.over[-5:]
    for trial in status.over:
        assert trial.started is not None
        assert trial.ended is not None
        assert time.time() - 600 < trial.started <= trial.ended <= time.time()


def test_what_runs_and_who_runs_it(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    job = loop.next_job()
    assert job is not None
    loop.progress(job.number, Validation(seed=1, num_updates=5, loss=2.5))
    watcher = TrialStore("fake", loop.store.storage, OBJECTIVES)
    status = read(watcher)
    assert [running.trial.number for running in status.running] == [job.number]
    assert status.running[0].driver == loop.leases.driver
    assert status.running[0].trial.curve == {5: 2.5}
    assert list(status.drivers) == [loop.leases.driver]
    loop.progress(job.number, Validation(seed=1, num_updates=10, loss=2.25, validation=2))
    assert read(watcher).running[0].trial.curve == {5: 2.5, 10: 2.25}
    kill_drivers()
    status = read(watcher)
    assert not status.drivers
    assert not status.running
    assert [waiting.driver for waiting in status.interrupted] == [loop.leases.driver]


def test_how_far_a_training_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has validated, its log says so; fairseq prints a line every 100 updates."""
    start, seed = tmp_path / "seed-1" / "start", tmp_path / "seed-1"
    first = ("fairseq-train", "x", "--max-epoch=3", "--seed", "2", "--save-dir", str(start))
    second = ("fairseq-train", "x", "--max-update=80", "--save-dir", str(seed / "checkpoints"))
    assert latest_updates((first, second)) is None
    seed.mkdir()
    line = "| INFO | train_inner | epoch 002:     34 / 266 loss=7.096, num_updates=300, lr=0.002\n"
    (seed / "start.log").write_text("no updates yet\n")
    assert latest_updates((first, second)) is None
    (seed / "start.log").write_text(line)
    assert latest_updates((first, second)) == Updates(300, 798, 2)
    (tmp_path / "train.log").write_text(line)
    monkeypatch.chdir(tmp_path)
    assert latest_updates([("nas-attn", "convert", "best.pt")]) is None
    loop = make_loop(tmp_path)
    job = loop.next_job()
    assert job is not None
    heard = LogEvents()
    with caplog.at_level(logging.INFO, logger="nas_attn.workflows.events"):
        loop.trains(job.number, latest_updates((first, second)))
        heard.on_change(loop.snapshot)
        heard._said -= 90
        heard.on_change(loop.snapshot)
    assert caplog.messages[-1] == "trial 0, seed 2: 300 of 798 updates"
    loop.store.annotate(job.number, {"starts": [first], "commands": [second]})
    (running,) = read(TrialStore("fake", loop.store.storage, OBJECTIVES)).running
    assert running.updates is not None
    assert running.updates.text == "300 of 798"
    assert running.updates.seed == 2


def test_the_budget_is_what_the_last_search_wanted(tmp_path: Path) -> None:
    store = make_loop(tmp_path).store
    store.set_metadata(BUDGET, 40)
    assert read(store).budget == 40


def test_what_is_trained_beside(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    FakeExecutor().run(loop)
    assert not read(loop.store).children
    TrialStore("fake (cold)", loop.store.storage, OBJECTIVES, create=True)
    TrialStore("fake (claims)", loop.store.storage, OBJECTIVES, create=True)
    TrialStore("faker (cold)", loop.store.storage, OBJECTIVES, create=True)
    children = read(loop.store).children
    assert [(one.name, one.finished, one.running) for one in children] == [("cold", 0, 0)]


def ended(trials: Sequence[TrialRecord], ends: Sequence[float]) -> Status:
    """A status at 10 hours of trials that began at zero and ended at these hours."""
    chosen = [trial for trial in trials if trial.is_trained][: len(ends)]
    over = [replace(t, started=0.0, ended=end * HOUR) for t, end in zip(chosen, ends, strict=True)]
    running = RunningStatus(trial=trials[-1], driver="one", is_alive=True)
    return Status(name="s", now=10 * HOUR, budget=20, trials=over, unfinished=[running])


def test_the_rate_is_that_of_the_last_hour(trials: Sequence[TrialRecord]) -> None:
    status = ended(trials, [1, 2, 9.1, 9.2, 9.3, 9.4, 9.5, 9.9])
    assert status.trials_an_hour == pytest.approx(6)
    assert status.seconds_left == pytest.approx(12 / 6 * HOUR)


def test_the_rate_of_long_trials_is_that_of_the_last_few(trials: Sequence[TrialRecord]) -> None:
    assert ended(trials, [1, 2, 3, 4, 5, 6, 7]).trials_an_hour == pytest.approx(5 / 8)
    assert ended(trials, [5]).trials_an_hour == pytest.approx(1 / 10)
    assert ended(trials, []).trials_an_hour is None
    assert ended(trials, []).seconds_left is None


def test_the_baseline_says_nothing_of_warm_trials(trials: Sequence[TrialRecord]) -> None:
    """It is trained whole, and they are fine-tuned."""
    first = replace(ended(trials, [5]).trials[0], is_baseline=True)
    warm = [replace(t, is_warm=True) for t in ended(trials, [9, 9.1, 9.3, 9.5]).trials[1:]]
    warm = [replace(trial, started=9 * HOUR) for trial in warm]
    begun = RunningStatus(trial=replace(trials[-1], is_warm=True), driver="one", is_alive=True)
    status = replace(ended(trials, []), trials=[first], unfinished=[begun])
    assert status.trials_an_hour is None
    assert status.seconds_left is None
    status = replace(status, trials=[first, *warm])
    assert status.trials_an_hour == pytest.approx(3)
    assert status.seconds_left == pytest.approx(16 / 3 * HOUR)


def test_time_is_left_as_trials_of_the_same_kind_took(trials: Sequence[TrialRecord]) -> None:
    """Nothing is said of what is fine-tuned, before the first such trial is over."""
    whole = replace(next(t for t in trials if t.is_trained), is_baseline=True, seconds=600.0)
    tally, begun = Tally(), time.time() - 20
    tally.update([whole], [0])
    now = Snapshot(budget=5, finished=1, starts_warm=True)
    warm = RunningTrial(
        number=1, name="trial 1", plan=BASELINE, cost=1, started=begun, is_warm=True
    )
    now = replace(now, running=(warm,), mean_seconds=tally.mean_seconds)
    assert now.seconds_left(1) is None
    assert replace(now, running=(), starts_warm=False).seconds_left(1) == 4 * 600
    tuned = replace(whole, is_baseline=False, is_warm=True, seconds=60.0)
    tally.update([whole, tuned], [0, 1])
    now = replace(now, finished=2, mean_seconds=tally.mean_seconds)
    assert now.seconds_left(1) == pytest.approx(40 + 2 * 60, abs=1)


def test_a_search_that_does_not_run_keeps_its_rate(trials: Sequence[TrialRecord]) -> None:
    status = replace(ended(trials, [1, 2, 3, 4, 5]), unfinished=[])
    assert status.trials_an_hour == pytest.approx(1)
    assert status.seconds_left is None


def test_drivers_on_other_machines_live_as_long_as_they_are_heard() -> None:
    entry = {"machine": "far away", "lock": "nowhere", "beats": 1}
    notes = {
        "driver a": {**entry, "ended": False, "at": 90.0},
        "driver b": {**entry, "ended": False, "at": 10.0},
        "driver c": {**entry, "ended": True, "at": 90.0},
        "driver d": {**entry, "ended": False},
        "versions": {},
    }
    assert live_drivers(notes, now=100.0, grace_seconds=60.0) == ["a"]
