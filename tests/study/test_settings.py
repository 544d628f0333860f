"""A study goes on with the settings that it began with, and with no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from nas_attn.study.settings import keep_settings
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, kill_drivers, make_loop
from tests.helpers.studies import write


def test_records_of_old_are_read(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    old = {"objectives": {"loss": "nll_loss", "parameters": "total"}, "training": {"lr": 0.1}}
    store.set_metadata("settings", old)
    now = {"objectives": {"loss": "nll_loss", "costs": ["total"]}, "training": {"lr": 0.1}}
    keep_settings(store, now)


def test_settings_must_stay(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    keep_settings(store, {"training": {"lr": 0.1, "seeds": [1, 2]}})
    keep_settings(store, {"training": {"lr": 0.1, "seeds": [1, 2]}})
    with pytest.raises(SearchError, match=r"training\.lr \(0\.1, now 0\.2\)"):
        keep_settings(store, {"training": {"lr": 0.2, "seeds": [1, 2]}})


def test_every_setting_that_differs_has_a_line(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    keep_settings(store, {"training": {"lr": 0.1, "seeds": [1, 2]}, "metric": "loss"})
    with pytest.raises(SearchError) as caught:
        keep_settings(store, {"training": {"lr": 0.2, "seeds": [1]}, "metric": "loss"})
    assert str(caught.value).splitlines()[1:3] == [
        "  training.lr (0.1, now 0.2)",
        "  training.seeds ([1, 2], now [1])",
    ]


def test_another_space_is_measured_by_sensitivity(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    keep_settings(store, {"space": {"decide": "site"}})
    with pytest.raises(SearchError, match=r"space\.decide .* sensitivity STUDY --space SPACE"):
        keep_settings(store, {"space": {"decide": "layer"}})


def test_numbers_that_older_records_hold_as_words_stay(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    keep_settings(store, {"training": {"lr": "1e-3", "optimizer": "adam"}})
    keep_settings(store, {"training": {"lr": 0.001, "optimizer": "adam"}})
    with pytest.raises(SearchError, match=r"training\.lr \('1e-3', now 0\.002\)"):
        keep_settings(store, {"training": {"lr": 0.002, "optimizer": "adam"}})
    with pytest.raises(SearchError, match=r"training\.optimizer \('adam', now 1\)"):
        keep_settings(store, {"training": {"lr": 0.001, "optimizer": 1}})


def test_refused_flags_that_change_no_loss_can_be_left_out(tmp_path: Path) -> None:
    store = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    stock = {
        "valid-subset": "valid",
        "keep_last_epochs": 5,
        "bpe": "gpt2",
        "disable-validation": False,
    }
    keep_settings(store, {"training": {"arguments": {"lr": 0.1, "save-interval": 2, **stock}}})
    keep_settings(store, {"training": {"arguments": {"lr": 0.1, "save-interval": 2}}})
    with pytest.raises(SearchError, match=r"arguments\.save-interval \(2, now None\)\. Restore"):
        keep_settings(store, {"training": {"arguments": {"lr": 0.1}}})


def test_memory_is_compared_on_one_kind_of_device(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """Resident memory and what CUDA has allocated are not the same cost."""
    record = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)

    def settings(gpus: float) -> dict[str, Any]:
        costs = ["total", "peak_memory"]
        changes = {"resources": {"gpus": gpus}, "objectives": {"costs": costs}}
        return load_study(str(write(tmp_path, tiny_translation.folder, changes))).settings()

    keep_settings(record, settings(0.25))
    keep_settings(record, settings(1))
    with pytest.raises(SearchError, match=r"resources\.device \('gpu', now 'cpu'\)"):
        keep_settings(record, settings(0))
    old = TrialStore("old", open_storage(None, tmp_path), OBJECTIVES, create=True)
    old.set_metadata("settings", {**settings(1), "resources": {"gpus": 1}})
    keep_settings(old, settings(0))


def test_records_that_may_be_of_gpus_that_nobody_gave_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = make_loop(tmp_path, trials=2)
    settings = {"training": {"lr": 0.1}, "resources": {"gpus": 1}}
    loop.store.set_metadata("settings", {"training": {"lr": 0.1}})
    monkeypatch.setattr("nas_attn.study.settings.seen_gpus", lambda: ["0", "1"])
    keep_settings(loop.store, settings, gpus=0)
    assert "earlier version" not in caplog.text, "there are no trials yet"
    FakeExecutor().run(loop)
    keep_settings(loop.store, settings, gpus=1)
    assert "earlier version" not in caplog.text
    keep_settings(loop.store, settings, gpus=0)
    assert "this process may use 2 (0, 1), and new trials train on CPUs" in caplog.text
    kill_drivers()


def test_as_many_gpus_train_a_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_translation: PreparedData
) -> None:
    """Each takes batches of its own; trials that share one, or have none, have one process."""
    record = TrialStore("one", open_storage(None, tmp_path), OBJECTIVES, create=True)

    def settings(gpus: float) -> dict[str, Any]:
        changes = {"resources": {"gpus": gpus}}
        return load_study(str(write(tmp_path, tiny_translation.folder, changes))).settings()

    keep_settings(record, settings(0))
    keep_settings(record, settings(0.25))
    keep_settings(record, settings(1))
    with pytest.raises(SearchError, match=r"resources\.gpus \(1, now 2\)"):
        keep_settings(record, settings(2))
    old = TrialStore("old", open_storage(None, tmp_path), OBJECTIVES, create=True)
    kept = {name: value for name, value in settings(1).items() if name != "resources"}
    old.set_metadata("settings", kept)
    keep_settings(old, settings(1))
    assert "how many GPUs" not in caplog.text
    keep_settings(old, settings(2))
    assert "does not say on how many GPUs its trials trained" in caplog.text
