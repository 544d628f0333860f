"""The record: a journal that is never half written, and a storage that goes away and comes back."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from nas_attn.engine import patience
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import NewTrial
from nas_attn.errors import SearchError
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, kill_drivers, make_loop


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=4)
    FakeExecutor().run(loop)
    before = [(t.number, t.state, t.loss) for t in loop.store.trials()]
    kill_drivers()
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":4,"wor')
    again = make_loop(tmp_path, trials=7)
    assert [(t.number, t.state, t.loss) for t in again.store.trials()] == before
    FakeExecutor().run(again)
    assert sum(trial.is_trained for trial in again.store.trials()) == 7


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver waits until there is room; what was there stays readable."""
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    store.set_metadata("first", 1)
    size = (tmp_path / JOURNAL).stat().st_size
    original, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        assert (tmp_path / JOURNAL).stat().st_size > size
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    store.set_metadata("second", 2)
    assert len(calls) == 2
    fresh = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES)
    assert {"first": 1, "second": 2}.items() <= fresh.metadata().items()


class Absent(InMemoryStorage):
    """A storage that does not answer for a while."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server closed the connection")
        super().set_study_user_attr(study_id, key, value)


def test_a_storage_that_comes_back_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    store = TrialStore("one", Absent(failures=4), OBJECTIVES, create=True)
    with caplog.at_level(logging.WARNING):
        store.set_metadata("name", 1)
    assert store.metadata()["name"] == 1
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    assert "the storage does not answer, waiting: the server closed" in caplog.text


def test_a_storage_that_stays_away_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)
    store = TrialStore("one", Absent(failures=9), OBJECTIVES, create=True)
    with pytest.raises(SearchError, match=r"has not answered .* the same command goes on"):
        store.set_metadata("name", 1)


def test_a_trial_that_was_written_although_the_answer_was_lost(tmp_path: Path) -> None:
    """The driver finds it as its own and runs it."""

    class Deaf(InMemoryStorage):
        lost = 0

        def create_new_trial(self, study_id: int, template_trial: Any = None) -> int:
            made = super().create_new_trial(study_id, template_trial)
            if made == 3 and not self.lost:
                self.lost += 1
                raise ConnectionError("gone")
            return made

    loop = make_loop(tmp_path, storage=Deaf(), trials=8)
    FakeExecutor().run(loop)
    trials = loop.store.trials()
    done = [trial for trial in trials if trial.is_trained]
    assert len(done) == 8
    assert all(trial.state.is_finished() for trial in trials)
    assert len({trial.plan for trial in done}) == 8


def test_a_trial_is_written_in_one_step(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    lines = len((tmp_path / JOURNAL).read_text().splitlines())
    params: Sequence[str] = ("a", "b")
    from optuna.distributions import IntDistribution

    store.create(
        NewTrial(
            attributes={"plan": {}, "driver": "x"},
            params={name: (1, IntDistribution(0, 3)) for name in params},
        )
    )
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == lines + 1


def test_other_directions_are_another_study(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    TrialStore("one", storage, OBJECTIVES, create=True)
    other = Objectives(metric="bleu", maximise=True, costs=("total",), limits={})
    with pytest.raises(SearchError, match="has the directions minimize, minimize, but"):
        TrialStore("one", storage, other)
