"""What a search was run with stays on record, start by start; what proposals hang on must not
change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas_attn.engine.provenance import (
    check_proposing,
    keep_proposing,
    machine_of,
    note_start,
    starts_of,
    versions_of,
)
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import NewTrial
from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.studies import write


def make_store(folder: Path) -> TrialStore:
    return TrialStore("one", open_storage(None, folder), OBJECTIVES, create=True)


def test_every_start_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.engine.provenance.time.time", lambda: 1.0)  # all in one tick
    store = make_store(tmp_path)
    note_start(store, {"torch": "2.12", "optuna": "5.0"}, "a")
    note_start(store, {"torch": "2.12", "optuna": "5.0"}, "a")
    note_start(store, {"torch": "2.13", "optuna": "5.0"}, "a")
    note_start(store, {"torch": "2.12", "optuna": "5.0"}, "b")
    notes = store.metadata()
    assert len(starts_of(notes)) == 3
    assert versions_of(notes) == {"torch": "2.12, then 2.13", "optuna": "5.0"}
    assert machine_of(notes) == "a, then b"
    assert notes["versions"] == {"torch": "2.12", "optuna": "5.0"}, "the first start's"
    assert notes["machine"] == "a"


def test_records_of_old_know_one_start(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert versions_of(store.metadata()) == {}
    assert machine_of(store.metadata()) == ""
    store.set_metadata("versions", {"torch": "2.11"})
    store.set_metadata("machine", "old")
    assert machine_of(store.metadata()) == "old"
    note_start(store, {"torch": "2.12"}, "new")
    assert versions_of(store.metadata()) == {"torch": "2.11, then 2.12"}
    assert machine_of(store.metadata()) == "old, then new"


def proposing(folder: Path, data: PreparedData, **changes: Any) -> dict[str, Any]:
    changes = {key.replace("__", "/"): value for key, value in changes.items()}
    return load_study(str(write(folder, data.folder, changes))).proposing()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"seed": 2}}, r"search.seed \(1, now 2\)"),
        ({"search": {"sampler": "gp"}}, r"search.sampler \('tpe', now 'gp'\)"),
        ({"search": {"startup_trials": 3}}, r"search.startup_trials \(8, now 3\)"),
        (
            {"search": {"enqueue": "sensitivity", "scores": "measured"}},
            r"search.enqueue \('none', now 'sensitivity'\)",
        ),
        (
            {"objectives": {"limits": {"total": 10000}}},
            r"objectives.limits.total \(None, now 10000.0\)",
        ),
    ],
)
def test_what_proposals_hang_on_stays(
    changes: dict[str, Any], words: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    store = make_store(tmp_path)
    before = proposing(tmp_path, tiny_translation)
    after = proposing(tmp_path, tiny_translation, **changes)
    keep_proposing(store, before)
    keep_proposing(store, after)  # no trial yet
    keep_proposing(store, before)
    store.create(NewTrial(attributes={}))
    with pytest.raises(SearchError, match=f"other settings, .*{words}. Restore them, or give the"):
        keep_proposing(store, after)
    with pytest.raises(SearchError, match="on which all further ones hang"):
        check_proposing(store, after)
    keep_proposing(store, before)


def test_scores_are_those_that_a_search_began_with(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """Records of old measured every single conversion, and say nothing of it."""
    changes = {"search": {"enqueue": "sensitivity"}}
    study = load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    assert study.proposing()["search.scores"] == "auto"
    of_old = {k: v for k, v in study.proposing().items() if k != "search.scores"}
    assert study.continued(of_old).proposing() == of_old
    assert study.continued(study.proposing()).proposing() == study.proposing()
    assert study.continued(None) == study
    changes["search"]["scores"] = "gradient"
    wanted = load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    assert wanted.continued(of_old).proposing()["search.scores"] == "gradient"


def test_a_study_may_be_extended(tmp_path: Path, tiny_translation: PreparedData) -> None:
    changes = {
        "search": {"trials": 99, "give_up_after": 2, "stopping": {"rule": "halving"}},
        "execution": {"workers": 7, "executor": "ray"},
        "resources": {"cpus": 2},
    }
    before = proposing(tmp_path, tiny_translation)
    assert proposing(tmp_path, tiny_translation, **changes) == before


def test_the_startup_of_a_search_that_only_spreads(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    one, other = (
        proposing(tmp_path, tiny_translation,
                  search={"sampler": "stratified_random", "startup_trials": count})
        for count in (3, 5)
    )  # fmt: skip
    assert one == other


def test_records_of_old_do_not_say(tmp_path: Path, tiny_translation: PreparedData) -> None:
    store = make_store(tmp_path)
    store.create(NewTrial(attributes={}))
    now = proposing(tmp_path, tiny_translation)
    keep_proposing(store, now)
    with pytest.raises(SearchError, match=r"search\.seed \(1, now 5\)"):
        keep_proposing(store, now | {"search.seed": 5})
