"""Repairing a journal: what is whole stays, and every trial keeps its number."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas_attn.engine.repair import Repair, describe, repair_journal
from nas_attn.engine.storage import JOURNAL, open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.errors import SearchError
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, kill_drivers, make_loop

DIRECTIONS = [direction.value for direction in OBJECTIVES.directions]
TRIALS = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that one driver began and another ended, with claims among its trials."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.raises(KeyboardInterrupt):
        FakeExecutor(die_after=5).run(make_loop(folder, trials=TRIALS, sampler="random"))
    loop = make_loop(folder, trials=TRIALS, sampler="random")
    FakeExecutor().run(loop)
    kill_drivers()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copy(whole / JOURNAL, tmp_path / JOURNAL)
    return tmp_path


def trials(folder: Path) -> list[TrialRecord]:
    return list(TrialStore("fake", open_storage(None, folder), OBJECTIVES).trials())


def said(trial: TrialRecord) -> tuple[Any, ...]:
    return trial.number, trial.state, trial.plan, trial.loss, trial.curve, trial.duplicate_of


def lines(folder: Path) -> list[bytes]:
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def repair(folder: Path) -> Repair:
    return repair_journal(folder / JOURNAL, "fake", DIRECTIONS, grace_seconds=0.0)


def of(code: int, folder: Path, **fields: object) -> list[int]:
    """Indices of the lines with some operation."""
    found = []
    for index, line in enumerate(lines(folder)):
        log = json.loads(line)
        if log["op_code"] == code and all(log.get(k) == v for k, v in fields.items()):
            found.append(index)
    return found


def damage(folder: Path, index: int, content: bytes = b"\xff" * 40 + b"\n") -> None:
    changed = lines(folder)
    changed[index] = content
    (folder / JOURNAL).write_bytes(b"".join(changed))


def test_a_whole_record_is_left_alone(folder: Path) -> None:
    before = (folder / JOURNAL).read_bytes()
    done = repair(folder)
    assert describe(done, folder / JOURNAL)[0].endswith("nothing to repair")
    assert (folder / JOURNAL).read_bytes() == before
    assert not list(folder.glob("*before-repair*"))


@pytest.mark.parametrize("lost", [0, 1, 4, 7])
def test_a_lost_creation_keeps_its_number(folder: Path, lost: int) -> None:
    """Also where nothing of its line can be read any more."""
    before = trials(folder)
    index = of(4, folder, study_id=0)[lost]
    original = (folder / JOURNAL).read_bytes()
    damage(folder, index)
    with pytest.raises(SearchError, match=f"line {index + 1} of"):
        open_storage(None, folder)
    done = repair(folder)
    assert done.placeholders == [("fake", lost)]
    after = trials(folder)
    assert after[lost].plan is None
    assert after[lost].state.name == "FAIL"
    assert not after[lost].uses_budget
    for one, other in zip(before, after, strict=True):
        if one.number != lost:
            assert said(other) == said(one)
    assert done.backup is not None
    assert done.backup.read_bytes() != original
    side = (folder / f"{JOURNAL}.damaged").read_text()
    kept = [json.loads(line) for line in side.splitlines()]
    assert kept[0]["line"] == index + 1
    assert len(kept) == len(done.dropped)
    assert repair(folder).backup is None


def test_the_search_goes_on_after_a_repair(folder: Path) -> None:
    damage(folder, of(4, folder, study_id=0)[3])
    repair(folder)
    loop = make_loop(folder, trials=TRIALS, sampler="random")
    FakeExecutor().run(loop)
    kill_drivers()
    trained = [trial for trial in trials(folder) if trial.is_trained]
    assert len(trained) == TRIALS
    assert len({trial.plan for trial in trained}) == TRIALS


def test_a_lost_claim_moves_no_trial(folder: Path) -> None:
    """The next trials have numbers of the whole storage, in which claims count too."""
    before = trials(folder)
    claim = of(4, folder, study_id=1)[0]
    damage(folder, claim)
    done = repair(folder)
    assert [name for name, _ in done.placeholders] == ["fake (claims)"]
    assert [said(trial) for trial in trials(folder)] == [said(trial) for trial in before]


def test_a_lost_study_is_made_again(folder: Path) -> None:
    before = trials(folder)
    damage(folder, 0)
    done = repair(folder)
    assert done.studies == ["fake"]
    assert [said(trial) for trial in trials(folder)] == [said(trial) for trial in before]


def test_the_studies_of_claims_come_again(folder: Path) -> None:
    before = trials(folder)
    damage(folder, of(0, folder, study_name="fake (claims)")[0])
    assert len(repair(folder).studies) == 1
    assert [said(trial) for trial in trials(folder)] == [said(trial) for trial in before]


def test_other_operations_lose_only_themselves(folder: Path) -> None:
    before = trials(folder)
    index = of(7, folder)[11]
    log = json.loads(lines(folder)[index])
    damage(folder, index)
    done = repair(folder)
    assert not done.placeholders
    after = trials(folder)
    trial = next(one for one in before if one.number == log["trial_id"])
    assert after[trial.number].curve.keys() == trial.curve.keys() - {log["step"]}
    assert [trial.loss for trial in after] == [trial.loss for trial in before]


def test_what_was_written_behind_half_a_line_stays(folder: Path) -> None:
    """Optuna's own writer does not look at what is before."""
    before = trials(folder)
    with (folder / JOURNAL).open("ab") as file:
        file.write(lines(folder)[-1][:50])
    others = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    others._backend.append_logs(
        [{"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": {"note": n}} for n in (1, 2)]
    )
    with pytest.raises(SearchError, match="nas-attn repair"):
        open_storage(None, folder)
    done = repair(folder)
    assert len(done.dropped) == 1
    store = TrialStore("fake", open_storage(None, folder), OBJECTIVES)
    assert store.metadata()["note"] == 2
    assert [said(trial) for trial in store.trials()] == [said(trial) for trial in before]


def test_an_inserted_line_moves_nothing(folder: Path) -> None:
    before = trials(folder)
    changed = lines(folder)
    changed.insert(60, b"\0" * 200 + b"\n")
    (folder / JOURNAL).write_bytes(b"".join(changed))
    assert not repair(folder).placeholders
    assert [said(trial) for trial in trials(folder)] == [said(trial) for trial in before]


def test_an_operation_that_optuna_cannot_apply(folder: Path) -> None:
    before = trials(folder)
    index = of(4, folder, study_id=0)[2]
    log = json.loads(lines(folder)[index])
    log["distributions"] = dict.fromkeys(log["distributions"], "{}")
    damage(folder, index, json.dumps(log).encode() + b"\n")
    assert repair(folder).placeholders == [("fake", 2)]
    assert [said(t) for t in trials(folder)[3:]] == [said(t) for t in before[3:]]


@pytest.mark.parametrize("seed", range(8))
def test_random_damage(folder: Path, seed: int) -> None:
    """Of what can still be read nothing changes; the front loses only lost trials."""
    before = trials(folder)
    generator = random.Random(seed)
    content = bytearray((folder / JOURNAL).read_bytes())
    for _ in range(3):
        at = generator.randrange(len(content) - 400)
        length = generator.randint(1, 300)
        content[at : at + length] = generator.randbytes(length)
    (folder / JOURNAL).write_bytes(content)
    done = repair(folder)
    after = trials(folder)
    assert len(after) <= len(before)
    lost = {number for name, number in done.placeholders if name == "fake"}
    touched = lost | {
        piece.log["trial_id"] for piece in done.dropped if piece.log and "trial_id" in piece.log
    }
    for one, other in zip(before, after, strict=False):
        assert one.number in touched or one.plan == other.plan
        assert one.number in touched or other.loss in (one.loss, None)
    again = {trial.number for trial in front(after)}
    assert {t.number for t in front(before)} & {t.number for t in after if t.is_trained} <= again


def test_no_repair_beside_a_driver(folder: Path) -> None:
    damage(folder, 5)
    before = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).rename(folder / "aside")
    make_loop(folder)
    (folder / "aside").rename(folder / JOURNAL)
    with pytest.raises(SearchError, match="is at work on this record; end it"):
        repair(folder)
    kill_drivers()
    assert (folder / JOURNAL).read_bytes() == before
    repair(folder)


def test_no_repair_beside_a_driver_elsewhere(folder: Path) -> None:
    now = {"beats": 3, "at": 4e9, "machine": "elsewhere 0", "lock": "/x", "ended": False}
    TrialStore("fake", open_storage(None, folder), OBJECTIVES).set_metadata("driver far-1-a", now)
    damage(folder, 5)
    with pytest.raises(SearchError, match="far-1-a is at work"):
        repair(folder)


def test_what_is_no_journal_is_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(b"dear diary\n" * 3)
    with pytest.raises(SearchError, match="is no journal of a search"):
        repair(tmp_path)
    assert path.read_bytes() == b"dear diary\n" * 3
