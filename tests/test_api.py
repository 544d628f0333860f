"""The Python API: what the command does, without a file, without a terminal, in any thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

import nas_attn
from nas_attn.engine.snapshot import Snapshot
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.workflows.events import LogEvents, Run
from tests.helpers.paths import ROOT
from tests.helpers.studies import STUDY

PUBLIC = [
    "AttentionPlan",
    "Results",
    "SearchSpace",
    "Study",
    "__version__",
    "build_attention",
    "convert_model",
    "open_study",
    "predict_front",
    "search",
]


class Heard(LogEvents):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self.messages: list[str] = []
        self.finished: list[int] = []
        self.endings: list[bool] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_start(self, run: Run, snapshot: Callable[[], Snapshot]) -> None:
        self.runs.append(run)

    def on_change(self, snapshot: Callable[[], Snapshot]) -> None:
        self.finished.append(snapshot().finished)

    def on_end(self, snapshot: Callable[[], Snapshot] | None) -> None:
        self.endings.append(snapshot is not None)


@pytest.fixture
def config(tiny_translation: PreparedData) -> dict[str, Any]:
    """What a study file would say, of replayed trainings."""
    return {
        **STUDY,
        "data": {"folder": str(tiny_translation.folder)},
        "replay": {"seconds": 0.05, "validations": 3},
        "execution": {"executor": "simulated"},
    }


def test_the_public_names_are_these() -> None:
    assert nas_attn.__all__ == PUBLIC == dir(nas_attn)
    for name in PUBLIC:
        assert getattr(nas_attn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'find'"):
        nas_attn.find  # noqa: B018


def test_public_things_say_what_they_do() -> None:
    for name in PUBLIC:
        thing = getattr(nas_attn, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), name
    public = [name for name in dir(nas_attn.Results) if not name.startswith("_")]
    assert {"front", "trials", "plot_front", "confirm", "report", "export", "compare"} <= {*public}
    for name in public:
        assert getattr(nas_attn.Results, name).__doc__, name


def test_a_search_of_a_dict(config: dict[str, Any], tmp_path: Path) -> None:
    heard = Heard()
    results = nas_attn.search(config, trials=3, runs=tmp_path, events=heard)
    assert [run.title for run in heard.runs] == ["small"]
    assert heard.endings == [True]
    assert max(heard.finished) == 3
    assert heard.messages == [f"report: {tmp_path / 'small' / 'report' / 'index.html'}"]
    assert repr(results).startswith("<Results of small: 3 of 3 trials finished, ")
    assert list(results.trials()["trial"]) == [0, 1, 2]
    front = results.front()
    assert front["on_front"].any() and front["baseline"].any()
    axes = results.plot_front()
    assert axes.get_xlabel()
    pyplot.close(axes.figure)
    page = results.report(tmp_path / "elsewhere")
    assert page == tmp_path / "elsewhere" / "index.html" and page.is_file()


def test_a_search_goes_on_and_a_study_is_opened_while_it_may_run(
    config: dict[str, Any], tmp_path: Path
) -> None:
    nas_attn.search(config, trials=2, runs=tmp_path)
    opened = nas_attn.open_study(config, runs=tmp_path)
    assert len(opened.trials()) == 2
    before = opened.trials()["loss"].tolist()
    nas_attn.search(config, overrides={"search": {"trials": 4}}, runs=tmp_path)
    assert opened.trials()["loss"].tolist()[:2] == before
    assert len(opened.trials()) == 4


def test_a_run_folder_is_enough_for_its_tables_wherever_it_is(
    config: dict[str, Any], tmp_path: Path
) -> None:
    losses = nas_attn.search(config, trials=3, runs=tmp_path).trials()["loss"].tolist()
    (tmp_path / "small").rename(tmp_path / "moved")
    opened = nas_attn.open_study(tmp_path / "moved")
    assert opened.trials()["loss"].tolist() == losses
    assert set(opened.front()["loss"]) <= set(losses)
    assert repr(opened).startswith("<Results of small: 3 of 3 trials finished, ")
    pyplot.close(opened.plot_front().figure)
    with pytest.raises(UsageError, match="open the study by its file or name"):
        opened.report()


def test_a_search_beside_the_main_thread_sets_no_signal_handler(
    config: dict[str, Any], tmp_path: Path
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found: list[nas_attn.Results] = []
    thread = threading.Thread(
        target=lambda: found.append(nas_attn.search(config, trials=2, runs=tmp_path))
    )
    thread.start()
    thread.join()
    assert len(found[0].trials()) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_confirmation_and_comparison(config: dict[str, Any], tmp_path: Path) -> None:
    results = nas_attn.search(config, trials=3, runs=tmp_path)
    confirmed = results.confirm(seeds=2)
    assert set(confirmed.columns) >= {"trial", "plan", "score", "mean", "error"}
    nas_attn.search({**config, "name": "other"}, trials=2, runs=tmp_path)
    compared = results.compare(tmp_path / "other", out=tmp_path / "compared")
    assert [row.study for row in compared.rows] == ["small", "other"]
    assert (tmp_path / "compared" / "compare.csv").is_file()


def test_what_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.trials"):
        nas_attn.search(config, overrides={"search": {"trials": 0}}, runs=tmp_path)
    with pytest.raises(NasAttnError, match="no search has run"):
        nas_attn.open_study(config, runs=tmp_path)
    results = nas_attn.search(config, trials=1, runs=tmp_path)
    with pytest.raises(UsageError, match="say which trial"):
        results.export(tmp_path / "out")
    with pytest.raises(UsageError, match="there is no trial 7"):
        results.export(tmp_path / "out", trial=7)
    with pytest.raises(UsageError, match="this one is loaded"):
        nas_attn.open_study(results.study, overrides={"search": {"seed": 3}})
    assert not (tmp_path / "out").exists()


def test_an_interrupted_search_says_so_and_goes_on(config: dict[str, Any], tmp_path: Path) -> None:
    class Impatient(Heard):
        def on_change(self, snapshot: Callable[[], Snapshot]) -> None:
            if snapshot().finished == 2:
                raise KeyboardInterrupt

    heard = Impatient()
    with pytest.raises(KeyboardInterrupt):
        nas_attn.search(config, trials=4, runs=tmp_path, events=heard)
    assert heard.endings == [False]
    assert len(nas_attn.search(config, trials=4, runs=tmp_path).trials()) == 4


@pytest.mark.slow
def test_the_example_and_the_command_go_on_with_each_other(tmp_path: Path) -> None:
    out = tmp_path / "search"
    command = [sys.executable, "-W", "ignore", "examples/search_in_python.py", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "<Results of demo: 3 of 3 trials finished" in done.stdout
    assert (out / "front.png").stat().st_size > 10_000
    assert (out / "report" / "index.html").is_file()
    assert (out / "model" / "checkpoint.pt").is_file()
