"""Commands that look at a study import what they need: for a record neither fairseq nor torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nas_attn import api
from nas_attn.engine.store import SETTINGS
from nas_attn.errors import ConfigError
from tests.helpers.fakes import FakeExecutor, kill_drivers, make_loop
from tests.helpers.studies import write

SCRIPT = """
import sys
from nas_attn.__main__ import main

try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""
SHOWING = {"matplotlib", "pandas", "plotly"}
TRAINING = {"fairseq", "ray", "torch"}


def imported(*arguments: str) -> set[str]:
    """Top packages that a command has imported by its end, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """A study's file beside the run folder of its search, without its data."""
    loop = make_loop(tmp_path / "runs" / "fake", trials=4)
    FakeExecutor(workers=1).run(loop)
    loop.store.set_metadata(SETTINGS, {"objectives": {"loss": "loss", "costs": ["total"]}})
    kill_drivers()
    return write(tmp_path, tmp_path / "gone", {"name": "fake", "objectives": {"metric": "loss"}})


def test_help_imports_little() -> None:
    assert not imported("--help") & {*TRAINING, *SHOWING, "numpy", "optuna", "pydantic", "scipy"}


@pytest.mark.parametrize("is_folder", [False, True])
def test_status_reads_the_record_alone(searched: Path, is_folder: bool) -> None:
    runs = searched.parent / "runs"
    if is_folder:
        found = imported("status", str(runs / "fake"), "--json")
    else:
        found = imported("status", str(searched), "--runs", str(runs))
    assert "optuna" in found
    assert not found & {*TRAINING, *SHOWING, "scipy"}


def test_check_asks_fairseq_and_draws_nothing() -> None:
    """Flags are judged by fairseq's parsers, and choices by building their modules."""
    found = imported("check", "demo")
    assert {"fairseq", "torch"} <= found
    assert not found & {"ray", *SHOWING}


def test_a_record_is_open_whose_study_is_refused(searched: Path) -> None:
    """What is wrong with the model is said by what needs it."""
    results = api.open_study(searched, runs=searched.parent / "runs")
    assert len(results.status().finished) == 4
    assert len(results.trials()) >= 4
    with pytest.raises(ConfigError, match="does not exist"):
        results.report()


def test_the_form_of_a_study_is_always_refused(searched: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.trials"):
        api.open_study(searched, overrides=["search.trials=0"], runs=searched.parent / "runs")
