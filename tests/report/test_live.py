"""Reports of searches that run: written again and again, and read by a page that reloads itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nas_attn.engine.status import BUDGET, Status
from nas_attn.engine.store import SETTINGS, TrialStore
from nas_attn.study.form import StudyForm, read_study
from nas_attn.study.recorded import ModelFacts, keep_model
from nas_attn.workflows.live_report import pages_beside, watch_report
from nas_attn.workflows.records import open_store
from tests.helpers.fakes import SHAPES, FakeExecutor, kill_drivers, make_loop
from tests.helpers.studies import write


@pytest.fixture
def study(tmp_path: Path) -> StudyForm:
    """What the file of a study says, of whose six trials four are over."""
    loop = make_loop(tmp_path / "runs" / "fake", trials=4)
    FakeExecutor(workers=1).run(loop)
    loop.store.set_metadata(SETTINGS, {"objectives": {"loss": "loss", "costs": ["total"]}})
    loop.store.set_metadata(BUDGET, 6)
    keep_model(loop.store, ModelFacts(shapes=SHAPES))
    kill_drivers()
    changes = {"name": "fake", "objectives": {"metric": "loss"}}
    return read_study(write(tmp_path, tmp_path / "gone", changes), runs=tmp_path / "runs")


@pytest.fixture
def store(study: StudyForm) -> TrialStore:
    return open_store(study)


def test_a_report_is_watched_until_the_search_is_over(
    study: StudyForm, store: TrialStore, tmp_path: Path
) -> None:
    pages = []

    def on_page(page: Path, status: Status) -> None:
        pages.append(page.read_text())
        store.set_metadata(BUDGET, 4)

    page = watch_report(study, store, tmp_path / "out", 2.5, on_page)
    first, last = pages
    assert page.read_text() == last
    assert 'data-reload="2.5"' in first
    assert f"Written {time.strftime('%Y-%m-%d')}" in first
    assert "0 trials are running. This page reloads itself every 2.5 s." in first
    assert 'id="live"' not in last


def test_pages_are_written_beside_a_search(study: StudyForm, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pages_beside(study, out, 0.05):
        deadline = time.monotonic() + 60
        while not (out / "index.html").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert 'data-reload="0.05"' in (out / "index.html").read_text()
    assert not list(out.glob("*.partial"))
    before = (out / "index.html").stat().st_mtime_ns
    time.sleep(0.2)
    assert (out / "index.html").stat().st_mtime_ns == before
