"""Optuna's own plots can be read: metrics have their names, and options their values."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial

from nas_attn.engine import candidates
from nas_attn.engine.audit import derive_again
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.samplers import (
    decisions_of,
    distributions_of,
    recorded_params,
    sampled_params,
)
from nas_attn.engine.store import TrialStore
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, kill_drivers, make_loop

SHARED_DIM = "encoder_self.collaborative.shared_dim"


def loss(trial: FrozenTrial) -> float:
    return trial.values[0]


def searched(folder: Path) -> SearchLoop:
    loop = make_loop(folder, trials=12, startup_trials=8)
    FakeExecutor(workers=1).run(loop)
    kill_drivers()
    return loop


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    loop = searched(tmp_path_factory.mktemp("searched"))
    return optuna.load_study(study_name="fake", storage=loop.store.storage)


def test_the_front_is_plotted_over_named_axes(study: optuna.Study) -> None:
    layout = optuna.visualization.plot_pareto_front(study).layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("loss", "total")


def test_a_slice_shows_values_of_options(study: optuna.Study) -> None:
    plot = optuna.visualization.plot_slice(
        study, params=[SHARED_DIM], target=loss, target_name="loss"
    )
    assert plot.layout.xaxis.title.text == SHARED_DIM
    assert plot.layout.yaxis.title.text == "loss"
    shown = {int(value) for value in plot.data[0].x}
    assert shown and shown <= {2, 4, 8, 16, 32}
    assert shown - {0, 1, 2, 3, 4}, "not their indices"


def test_parallel_coordinates_name_options(study: optuna.Study) -> None:
    plot = optuna.visualization.plot_parallel_coordinate(
        study, params=[SHARED_DIM, "encoder_self.scheme"], target=loss, target_name="loss"
    )
    lines = [trace.customdata for trace in plot.data if trace.customdata is not None]
    assert {line[0][0] for line in lines} == {"loss"}
    assert {line[2][1] for line in lines} == {"multi_head", "collaborative"}
    values = {line[1][1] for line in lines} - {"None"}
    assert values and values <= {"2", "4", "8", "16", "32"}


def test_what_is_recorded_is_what_was_sampled(tmp_path: Path) -> None:
    loop = searched(tmp_path)
    decisions = decisions_of(loop.proposer.space)
    kinds = distributions_of(decisions)
    trial = next(t for t in loop.store.trials() if SHARED_DIM in t.params)
    sampled = sampled_params(decisions, trial.params)
    index = sampled[f"{SHARED_DIM}.index"]
    assert (2, 4, 8, 16, 32)[index] == trial.params[SHARED_DIM]
    assert len(sampled) == len(trial.params)
    assert sampled_params(decisions, sampled) == sampled, "as earlier versions wrote it"
    answers = {name: (sampled[name], kind) for name, kind in kinds.items() if name in sampled}
    again = recorded_params(decisions, answers)
    assert {name: value for name, (value, _) in again.items()} == trial.params


def test_a_record_with_indices_goes_on_as_if_it_had_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions wrote the sampler's indices; proposals do not depend on which it is."""
    whole = searched(tmp_path / "whole").store.trials()
    with monkeypatch.context() as before, pytest.raises(KeyboardInterrupt):
        before.setattr(candidates, "recorded_params", lambda decisions, params: dict(params))
        loop = make_loop(tmp_path / "old", trials=12, startup_trials=8)
        FakeExecutor(workers=1, die_after=10).run(loop)
    kill_drivers()
    assert any(name.endswith(".index") for t in loop.store.trials() for name in t.params)
    loop = searched(tmp_path / "old")
    trials = loop.store.trials()
    assert [trial.plan for trial in trials] == [trial.plan for trial in whole]
    loop.proposer.forget()
    assert all(derivation.agrees for derivation in derive_again(loop.proposer, trials))


def test_a_record_without_names_of_metrics_gets_them(tmp_path: Path) -> None:
    store = searched(tmp_path).store
    study = store.storage.get_study_id_from_name("fake")
    store.storage.set_study_system_attr(study, "study:metric_names", None)
    TrialStore("fake", store.storage, OBJECTIVES)
    assert optuna.load_study(study_name="fake", storage=store.storage).metric_names is None
    TrialStore("fake", store.storage, OBJECTIVES, create=True)
    named = optuna.load_study(study_name="fake", storage=store.storage).metric_names
    assert named == ["loss", "total"]
