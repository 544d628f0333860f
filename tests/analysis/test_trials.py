"""The trials of a study as one collection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nas_attn.analysis.trials import Trials
from nas_attn.engine.store import TrialStore
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.evaluation import evaluation_texts
from nas_attn.study.loading import load_study
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, make_loop
from tests.helpers.studies import write


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    loop = make_loop(tmp_path / "run", trials=14)
    FakeExecutor(error=lambda job: "broken" if job.number == 4 else None).run(loop)
    return loop.store


def test_what_a_collection_knows(store: TrialStore, tmp_path: Path) -> None:
    trials = Trials.of(store, tmp_path / "run")
    assert list(trials) == list(store.trials())
    assert trials.baseline == trials[0]
    assert {trial.number for trial in trials} - {trial.number for trial in trials.trained} == {
        trial.number for trial in trials if not trial.is_trained
    }
    assert trials[4] not in trials.trained
    costs = [trial.cost or 0 for trial in trials.front]
    losses = [trial.loss or 0.0 for trial in trials.front]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert trials[1:].baseline is None
    assert trials[1:].objectives == OBJECTIVES
    assert trials.noise is None


def test_the_tables_are_copies(store: TrialStore, tmp_path: Path) -> None:
    trials = Trials.of(store, tmp_path / "run")
    table = trials.to_frame()
    assert list(table["trial"]) == [trial.number for trial in trials]
    table["trial"] = 0
    assert list(trials.to_frame()["trial"]) == [trial.number for trial in trials]
    assert set(trials.front_frame()["trial"]) == {0, *(trial.number for trial in trials.front)}


def test_files_are_found_in_a_run_folder_that_was_moved(store: TrialStore, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (moved / "trials" / "00001").mkdir(parents=True)
    recorded = store.trials()
    trials = Trials.of(store, moved)
    assert trials[1].folder == str(moved / "trials" / "00001")
    assert trials[2].folder == recorded[2].folder, "what is nowhere stays as it is on record"
    Path(str(recorded[1].folder)).mkdir(parents=True)
    assert Trials.of(store, moved)[1].folder == recorded[1].folder, "it is where it was"


def test_commands_that_evaluate_name_a_moved_run_folder(
    store: TrialStore, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    study = load_study(str(write(tmp_path, tiny_translation.folder)), runs=tmp_path / "moved")
    run = study.folder / "trials" / "00001"
    run.mkdir(parents=True)
    before = [replace(t, folder=f"/before/trials/{t.number:05d}") for t in store.trials()]
    stored: Any = SimpleNamespace(trials=lambda: before, objectives=OBJECTIVES)
    texts = evaluation_texts(study.config, Trials.of(cast(TrialStore, stored), study.folder))
    assert f"{run}/seed-1/checkpoints/checkpoint_best.pt" in texts[1]
    assert texts[1].startswith("OMP_NUM_THREADS=1 fairseq-generate ")
    assert "/before/trials/00002/seed-1/checkpoints/checkpoint_best.pt" in texts[2]
