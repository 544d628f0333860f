"""A study that an earlier version recorded is shown, reported and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import nas_attn.api as nas_attn
from nas_attn.workflows.proposals import check_proposals
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:the key objectives.loss:FutureWarning")

RECORDED = ROOT / "tests" / "fixtures" / "recorded_study"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The study's file, its data and its run folder in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(RECORDED / "recorded.yaml", tmp_path)
    shutil.copytree(RECORDED / "data_set", tmp_path / "data")
    shutil.copytree(RECORDED / "run_folder", tmp_path / "runs" / "recorded")
    return "recorded.yaml"


def reported(name: str) -> pd.DataFrame:
    return pd.read_csv(RECORDED / name)


def assert_equal(folder: Path, name: str) -> None:
    """A table of a report has the rows of the earlier one, to the last digit."""
    now, before = pd.read_csv(folder / name), reported(name)
    pd.testing.assert_frame_equal(now[before.columns], before, check_exact=True)


def test_its_status_is_shown(study: str) -> None:
    status = nas_attn.open_study(study).status()
    assert (len(status.finished), status.budget, len(status.trials)) == (6, 6, 7)
    assert [child.finished for child in status.children] == [2, 58]
    assert not status.running and not status.failed


def test_its_report_says_the_same_numbers(study: str) -> None:
    page = nas_attn.open_study(study).report()
    assert "Recorded by the version before" in page.read_text()
    for name in ("front.csv", "trials.csv", "confirmed.csv"):
        assert_equal(page.parent, name)


def test_its_proposals_are_derived_again(study: str) -> None:
    results = nas_attn.open_study(study)
    assert check_proposals(results.study, results.store) == 7


@pytest.mark.slow
def test_its_search_goes_on(study: str) -> None:
    results = nas_attn.search(study, trials=10, workers=2)
    trials = results.trials()
    assert len(results.status().over) == 10
    before = reported("trials.csv")
    losses = trials.set_index("trial")["loss"]
    assert list(losses[before["trial"]].fillna(0)) == list(before["loss"].fillna(0))
    assert check_proposals(results.study, results.store) == len(trials)
