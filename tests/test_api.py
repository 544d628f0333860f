"""The Python API: what the command does, without a file, without a terminal, in any thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from matplotlib import pyplot

import nas_attn
from nas_attn.engine.snapshot import Snapshot
from nas_attn.errors import ConfigError, NasAttnError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.checks import check_plan
from nas_attn.workflows.confirm import confirm
from nas_attn.workflows.events import LogEvents, Run
from tests.helpers.cli import invoke
from tests.helpers.paths import ROOT
from tests.helpers.studies import STUDY

PUBLIC = [
    "AttentionPlan",
    "KnownCostSampler",
    "Results",
    "SearchSpace",
    "Study",
    "__version__",
    "build_attention",
    "convert_model",
    "load_converted",
    "open_study",
    "predict_front",
    "save_converted",
    "search",
]


class Heard(LogEvents):
    """Keeps what it is called with."""

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
    assert opened.report() == tmp_path / "moved" / "report" / "index.html"
    assert "3 of 3 finished" in invoke("status", str(tmp_path / "moved"))
    assert nas_attn.open_study("moved", runs=tmp_path).folder == tmp_path / "moved"
    with pytest.raises(UsageError, match="is no run folder of a search"):
        nas_attn.open_study(tmp_path)


def test_results_stay_where_they_are(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = nas_attn.search(config, trials=2)
    opened = nas_attn.open_study("runs/small")
    monkeypatch.chdir("/")
    assert len(results.trials()) == len(opened.trials()) == 2
    assert len(results.confirm(seeds=2)) >= 2
    assert results.report() == tmp_path / "runs" / "small" / "report" / "index.html"


def test_a_loaded_study_takes_the_same_arguments(config: dict[str, Any], tmp_path: Path) -> None:
    study = nas_attn.Study.from_config(config, runs=tmp_path)
    assert len(nas_attn.search(study, trials=2).trials()) == 2
    assert len(nas_attn.search(study, trials=1, runs=tmp_path / "other").trials()) == 1
    assert nas_attn.open_study(study).folder == tmp_path / "small"
    assert len(nas_attn.open_study(study).trials()) == 2


def test_a_section_of_overrides_replaces_a_name(config: dict[str, Any], tmp_path: Path) -> None:
    space = {"schemes": {"multi_head": {}, "multi_query": {}}}
    named = {**config, "space": "grouped_query"}
    results = nas_attn.search(named, trials=1, overrides={"space": space}, runs=tmp_path)
    assert results.study.space.size == 8


def test_a_shipped_name_means_the_study_wherever_one_is(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas_attn.search({**config, "name": "demo"}, trials=1, runs=tmp_path)
    monkeypatch.chdir(tmp_path)
    data = {"data": {"folder": config["data"]["folder"]}}
    with pytest.raises(NasAttnError, match="no search has run in"):
        nas_attn.open_study("demo", overrides=data)
    assert len(nas_attn.open_study(Path("demo")).trials()) == 1


def test_an_address_means_ray_for_what_is_trained_later(
    config: dict[str, Any], tmp_path: Path
) -> None:
    nas_attn.search(config, trials=1, runs=tmp_path)
    opened = nas_attn.open_study(config, address="auto", runs=tmp_path)
    assert opened.study.execution.executor == "ray"


def test_flags_that_no_study_may_set_are_read_and_not_trained(
    config: dict[str, Any], tmp_path: Path
) -> None:
    arguments = config["training"]["arguments"]
    once = {**config, "training": {"arguments": {**arguments, "save-dir": "elsewhere"}}}
    nas_attn.search(config, trials=1, runs=tmp_path)
    opened = nas_attn.open_study(once, runs=tmp_path)
    assert len(opened.trials()) == 1
    with pytest.raises(ConfigError, match=r"training\.arguments\.save-dir"):
        opened.confirm(seeds=2)
    with pytest.raises(ConfigError, match=r"training\.arguments\.save-dir"):
        nas_attn.search(opened.study)


def test_how_a_search_ended_is_logged(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="nas_attn.workflows.events"):
        nas_attn.search(config, trials=3, runs=tmp_path)
    progress = [line for line in caplog.messages if " finished, " in line]
    assert progress[-1] == "3 of 3 finished, 0 stopped early, 0 running, 0 failed"


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


def test_threads_leave_standard_output_to_each_other(config: dict[str, Any]) -> None:
    streams = sys.stdout, sys.stderr
    seen = set()

    def load() -> None:
        for _ in range(4):
            nas_attn.Study.from_config(config)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen |= {sys.stdout, sys.stderr}
    assert seen == {*streams} == {sys.stdout, sys.stderr}


def test_confirmation_and_comparison(config: dict[str, Any], tmp_path: Path) -> None:
    results = nas_attn.search(config, trials=3, runs=tmp_path)
    confirmed = results.confirm(seeds=2)
    assert set(confirmed.columns) >= {"trial", "plan", "score", "mean", "error"}
    given = AttentionPlan.of({"decoder_self": [AttentionChoice.of("multi_query")]})
    also = results.confirm(seeds=2, plans=[given])
    new = also[~also["plan"].isin(confirmed["plan"])]
    assert set(new["plan"]) == {str(given.over(results.study.baseline))}
    assert new["trial"].isna().all() and new["change"].notna().all()
    assert len(also) == len(confirmed) + len(new)
    for choice, message in (
        (AttentionChoice.of("grouped_query", num_groups=3), "num_groups"),
        (AttentionChoice.of("grouped_head", keep="pillars"), "training.arguments.criterion"),
    ):
        misfit = AttentionPlan.of({"decoder_self": [choice]})
        with pytest.raises(ConfigError, match=rf"(?s)decoder_self.*{message}"):
            results.confirm(seeds=2, plans=[misfit])
    decoder = {"decoder_self": results.study.space.shapes["decoder_self"]}
    faults = check_plan(results.study.config, results.study.baseline, decoder)
    assert {fault.key for fault in faults} == {"encoder_self", "encoder_decoder"}
    assert "the model has no such site; it has decoder_self" in faults[0].message
    nas_attn.search({**config, "name": "other"}, trials=2, runs=tmp_path)
    compared = results.compare(tmp_path / "other", out=tmp_path / "compared")
    assert [row.study for row in compared.rows] == ["small", "other"]
    assert (tmp_path / "compared" / "compare.csv").is_file()


def test_a_plan_is_confirmed_without_a_search(config: dict[str, Any], tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(config))
    runs = ("--runs", str(tmp_path / "runs"))
    plan = '{"decoder_self": "multi_query"}'
    with pytest.raises(NasAttnError, match="no search has run"):
        invoke("confirm", str(study), *runs, "--trial", "1", "--plan", plan)
    text = invoke("confirm", str(study), *runs, "--seeds", "2", "--plan", plan)
    assert "the baseline and 1 given plan, each trained with seeds 2, 3" in text
    table = tmp_path / "runs" / "small" / "report" / "confirmed.csv"
    assert f"report: {table}" in text
    rows = pd.read_csv(table)
    assert rows["trial"].isna().all()
    assert rows["seeds"].eq(2).all()
    assert rows.groupby("plan")["change"].count().sum() == 1
    invoke("search", str(study), *runs, "--trials", "2")
    text = invoke("confirm", str(study), *runs, "--seeds", "2", "--plan", plan)
    assert "trials 0 of the search and 1 given plan, each trained again" in text
    assert f"report: {table.with_name('index.html')}" in text
    assert len(pd.read_csv(table)) == len(rows)


def test_what_fails_without_a_search_is_said(config: dict[str, Any], tmp_path: Path) -> None:
    config["replay"]["faults"] = {"not_finite": 1.0}
    study = nas_attn.Study.from_config(config, runs=tmp_path)
    done = confirm(study, seeds=2, plans=[study.baseline])
    assert not done.rows and done.page is None
    assert [trial.failure for trial in done.failed] == ["not_finite"]
    assert isinstance(done.failure, NasAttnError)


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
    with pytest.raises(UsageError, match="confirm with 2 seeds or more"):
        results.confirm(seeds=1)
    with pytest.raises(UsageError, match="the executor simulated has not"):
        nas_attn.search(config, executor="simulated", address="auto", runs=tmp_path)
    with pytest.raises(UsageError, match="0 checks or more"):
        nas_attn.predict_front(config, checks=-1)
    with pytest.raises(UsageError, match="one scheme at least"):
        nas_attn.predict_front(config, max_schemes=0)
    with pytest.raises(UsageError, match="decoding_seconds is no cost that can be predicted"):
        nas_attn.predict_front(config, limits={"decoding_seconds": 1.0})
    with pytest.raises(UsageError, match="cache is no cost that can be predicted"):
        nas_attn.predict_front(config, second_cost="cache")
    with pytest.raises(UsageError, match="a study has a data set"):
        nas_attn.predict_front(config, data="data-bin/other")
    assert results.report().is_file(), "nothing of what was refused is on record"
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


@pytest.mark.long
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
