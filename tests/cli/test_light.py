"""Commands that look at a study import what they need: for a record neither fairseq nor torch.

They also work where the data set, or what the study asks of fairseq, is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas_attn import api
from nas_attn.attention.counting import count_choice
from nas_attn.attention.pruning import PrunableAttention
from nas_attn.attention.registry import SCHEMES
from nas_attn.engine.store import SETTINGS
from nas_attn.engine.trial_record import PRUNED, REASON, NewTrial
from nas_attn.errors import ConfigError
from nas_attn.plan import SCHEME_NAMES, AttentionChoice, AttentionPlan
from nas_attn.pruned import PRUNING
from nas_attn.study.recorded import MODEL, ModelFacts, keep_model
from tests.helpers.fakes import SHAPES, FakeExecutor, kill_drivers, make_loop, make_space
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
SAY_THREADS = (
    SCRIPT.partition("sys.stderr")[0]
    + """
import os
import torch
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads())
"""
)
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
    keep_model(loop.store, ModelFacts(shapes=SHAPES, module_parameters=_sizes()))
    loop.store.create(pruned_trial())
    kill_drivers()
    return write(tmp_path, tmp_path / "gone", {"name": "fake", "objectives": {"metric": "loss"}})


def _sizes() -> dict[str, dict[str, int]]:
    sizes: dict[str, dict[str, int]] = {}
    for _, site, choice in make_space().choices():
        sizes.setdefault(site, {})[str(choice)] = count_choice(choice, SHAPES[site]).parameters
    return sizes


def pruned_trial() -> NewTrial:
    """A trial whose heads were voted out: what is left of it is said in words."""
    plan, left = (
        AttentionPlan.uniform(AttentionChoice.of("grouped_head", **options), tuple(SHAPES))
        for options in ({"keep": "pillars"}, {"kept_heads": 3})
    )
    attributes = {"plan": plan.to_json(), PRUNED: [left.to_json()], REASON: "dominated"}
    return NewTrial(attributes=attributes, state=TrialState.PRUNED)


def test_help_imports_little() -> None:
    assert not imported("--help") & {*TRAINING, *SHOWING, "numpy", "optuna", "pydantic", "scipy"}


@pytest.mark.parametrize("said", [None, "2"])
def test_a_command_computes_with_one_thread_unless_told(said: str | None) -> None:
    """Over a small model's products, threads of many cores mostly wait for each other."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {} if said is None else {"OMP_NUM_THREADS": said}
    command = [sys.executable, "-W", "ignore", "-c", SAY_THREADS, "schema"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    threads = said or "1"
    assert done.stdout.splitlines()[-1] == f"{threads} {threads}"


@pytest.mark.parametrize("is_folder", [False, True])
def test_status_reads_the_record_alone(searched: Path, is_folder: bool) -> None:
    runs = searched.parent / "runs"
    if is_folder:
        found = imported("status", str(runs / "fake"), "--json")
    else:
        found = imported("status", str(searched), "--runs", str(runs))
    assert "optuna" in found
    assert not found & {*TRAINING, *SHOWING, "scipy"}


def test_a_report_is_drawn_from_the_record_alone(searched: Path) -> None:
    found = imported("report", str(searched), "--runs", str(searched.parent / "runs"))
    assert {"matplotlib", "plotly"} <= found
    assert not found & {*TRAINING, "scipy"}
    assert (searched.parent / "runs" / "fake" / "report" / "index.html").is_file()


@pytest.mark.parametrize("command", ["compare", "proposals", "show", "plugin-dir"])
def test_other_looks_train_nothing(searched: Path, tmp_path: Path, command: str) -> None:
    folder = searched.parent / "runs" / "fake"
    shutil.copytree(folder, tmp_path / "other")
    arguments = {
        "compare": [str(folder), str(tmp_path / "other"), "--out", str(tmp_path / "out")],
        "proposals": [str(folder)],
        "show": ["demo"],
        "plugin-dir": [],
    }
    assert not imported(command, *arguments[command]) & TRAINING


def test_the_names_of_schemes_are_those_of_the_registry() -> None:
    assert tuple(SCHEMES) == SCHEME_NAMES
    pruning = {
        name: scheme.module.pruning
        for name, scheme in SCHEMES.items()
        if issubclass(scheme.module, PrunableAttention)
    }
    assert pruning == PRUNING


def test_check_asks_fairseq_and_draws_nothing() -> None:
    """Flags are judged by fairseq's parsers, and choices by building their modules."""
    found = imported("check", "demo")
    assert {"fairseq", "torch"} <= found
    assert not found & {"ray", *SHOWING}


def test_a_record_is_open_whose_study_is_refused(searched: Path) -> None:
    """What is wrong with the model is said by what needs it; a report says what it lacks."""
    results = api.open_study(searched, runs=searched.parent / "runs")
    assert len(results.status().finished) == 4
    assert len(results.trials()) >= 4
    with pytest.raises(ConfigError, match="does not exist"):
        results.confirm()
    page = results.report(searched.parent / "page").read_text()
    assert "Commands of evaluation are left out" in page
    results.store.set_metadata(MODEL, None)  # as in records of old
    page = results.report(searched.parent / "page").read_text()
    assert "What is known of the model is left out" in page


def test_the_form_of_a_study_is_always_refused(searched: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.trials"):
        api.open_study(searched, overrides=["search.trials=0"], runs=searched.parent / "runs")
