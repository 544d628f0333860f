"""A study goes on with the settings that it began with, and with no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import SearchError
from nas_attn.study.settings import keep_settings
from tests.helpers.fakes import OBJECTIVES


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
