"""The command, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nas_attn.attention import SCHEMES
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.fairseq_tools.data import PreparedData, load_prepared
from nas_attn.fairseq_tools.prune import load_checkpoint
from nas_attn.study.shipped import shipped_folder, shipped_names
from tests.helpers.cli import COMMAND, invoke, run
from tests.helpers.forked import run_module
from tests.helpers.paths import ROOT
from tests.helpers.studies import write

OBJECTIVES = Objectives(metric="nll_loss", maximise=False, costs=("total",), limits={})


def test_help_names_every_command() -> None:
    text = run("--help")
    for command in (
        "search",
        "report",
        "confirm",
        "proposals",
        "status",
        "check",
        "spaces",
        "doctor",
        "bench",
        "count",
        "prepare",
        "prune",
        "plugin-dir",
        "export",
        "compare",
        "repair",
    ):
        assert command in text
        assert len(invoke(command, "--help").splitlines()) > 5


def test_count_as_json() -> None:
    text = run(
        "count", "--arch", "collaborative_transformer_wmt_en_de", "--vocab", "32768",
        "--share-all-embeddings", "--shared-dim", "128", "--json",
    )  # fmt: skip
    assert json.loads(text) == {
        "attention": 18 * 657_664,
        "non_embedding": 53_842_432 - 32768 * 512,
        "total": 53_842_432,
        "effective": 53_842_432 - 18 * (657_664 - 624_000),
    }


def test_count_of_a_language_model() -> None:
    """fairseq's own names are those of multi-head attention, as for spaces."""
    for arch in ("multi_head_transformer_lm", "transformer_lm"):
        text = run("count", "--arch", arch, "--vocab", "100", "--json",
                   "--tokens-per-sample", "64")  # fmt: skip
        assert json.loads(text)["attention"] == 6 * 1_050_624


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--arch", "transformer_wmt_ende", "--vocab", "99"],
            'unknown architecture transformer_wmt_ende; did you mean "transformer_wmt_en_de"?',
        ),
        (
            ["--arch", "multi_head_transformer", "--vocab", "99", "--shared-dimm", "3"],
            "shared-dimm",
        ),
        (
            ["--arch", "collaborative_transformer", "--vocab", "99", "--shared-dim", "0"],
            "at least 1",
        ),
        (["--arch", "multi_head_transformer", "--vocab", "2"], "at least 4 types"),
    ],
)
def test_count_refuses(arguments: list[str], message: str) -> None:
    assert message in run("count", *arguments, status=1)


def test_the_plugin_folder_is_printed() -> None:
    folder = Path(run("plugin-dir").strip())
    assert (folder / "__init__.py").is_file()


def test_spaces_and_check(tmp_path: Path, tiny_translation: PreparedData) -> None:
    text = run("spaces")
    for name in shipped_names("search_spaces"):
        assert name in text
    assert {f"{scheme}.yaml" for scheme in SCHEMES} <= {
        path.name for path in shipped_folder("search_spaces").iterdir()
    }
    assert re.search(r"single_head +27 +27,599,232 +44,138,496", text)
    assert "multi30k_en_de" in text
    narrow = run("spaces", "--arch", "transformer_lm", "--decoder-embed-dim=24",
                 "--decoder-attention-heads=3")  # fmt: skip
    assert re.search(r"reduced_key +- +- +-", narrow)
    assert re.search(r"multi_query +2 ", narrow)
    assert "unknown architecture lstm" in run("spaces", "--arch", "lstm", status=1)
    assert "27 plans; 3 trials x 1 seed = 3 trainings" in run(
        "check", str(write(tmp_path, tiny_translation.folder))
    )


@pytest.mark.slow
@pytest.mark.long
def test_doctor(tmp_path: Path) -> None:
    keep = tmp_path / "doctor"
    text = run("doctor", "--scheme", "multi_query", "--task", "language_modeling", "--keep",
               str(keep))  # fmt: skip
    assert "3 commands, all work" in text
    assert "train ok" in text
    assert (keep / "multi_query-language_modeling" / "checkpoint_last.pt").is_file()
    assert "exists; remove it" in run("doctor", "--keep", str(keep), status=1)
    assert "cannot try 'glue'" in run("doctor", "--task", "glue", status=1)


def test_preparing_files(tmp_path: Path) -> None:
    for language in ("en", "de"):
        lines = [f"{language}{i % 7} word{i % 5} the end" for i in range(120)]
        (tmp_path / f"text.{language}").write_text("\n".join(lines) + "\n")
    out = tmp_path / "set"
    arguments = [
        "--valid-lines",
        "10",
        "--test-lines",
        "9",
        "--vocab-size",
        "60",
        "--out",
        str(out),
    ]
    files = [str(tmp_path / f"text.{language}") for language in ("en", "de")]
    assert "lines: train 101, valid 10, test 9\n" in run("prepare", *files, *arguments)
    assert load_prepared(out).languages == ("en", "de")
    assert json.loads((out / "prepared.json").read_text())["lines"] == {
        "train": 101, "valid": 10, "test": 9,
    }  # fmt: skip
    assert "exists" in run("prepare", *files, *arguments, status=1)
    single = ["prepare", files[0], *arguments[:-1], str(tmp_path / "single")]
    run(*single)
    assert load_prepared(tmp_path / "single").languages == ()


def test_nothing_to_report(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = str(write(tmp_path, tiny_translation.folder))
    runs = ["--runs", str(tmp_path / "runs")]
    for command in ("report", "status"):
        assert "no search has run in" in run(command, path, *runs, status=1)


def test_a_ray_address_where_nothing_is(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = str(write(tmp_path, tiny_translation.folder))
    arguments = ["search", path, "--runs", str(tmp_path / "runs"), "--address", "127.0.0.1:1"]
    assert "nothing answers at the Ray address 127.0.0.1:1" in run(*arguments, status=1)


@pytest.mark.parametrize(
    "executor", ["local", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_a_real_search_survives_kill_9(
    executor: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """Killed while two workers train, and started again: every trial is complete, once.

    Then its report is read, a checkpoint is converted, and fairseq generates with that.
    """
    path = write(tmp_path, tiny_translation.folder, {"training/arguments/max-epoch": 2})
    runs = tmp_path / "runs"
    arguments = ["search", str(path), "--runs", str(runs), "--executor", executor, "--workers", "2"]
    journal = runs / "small" / "journal.log"
    driver = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(runs.glob("small/trials/*/seed-1/train.log")):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert journal.is_file()
    run(*arguments)
    store = TrialStore("small", open_storage(None, runs / "small"), OBJECTIVES)
    trials = store.trials()
    assert [trial.state.name for trial in trials if trial.uses_budget] == ["COMPLETE"] * 3
    assert len({trial.plan for trial in trials if trial.uses_budget}) == 3
    assert trials[0].is_baseline
    table = pd.read_csv(runs / "small" / "report" / "trials.csv")
    assert (table["state"] == "complete").all()
    for trial in trials:
        assert trial.folder is not None
        folder = Path(trial.folder)
        assert (folder / "seed-1" / "checkpoints" / "checkpoint_best.pt").is_file()
        assert "fairseq-train" in (folder / "commands.sh").read_text()
        assert json.loads((folder / "plan.json").read_text())
    if executor == "local":
        _convert(Path(trials[0].folder or ""), tiny_translation.folder, tmp_path)
    # A third start has nothing to do; a changed training is refused.
    before = (runs / "small" / "trials" / "00000" / "seed-1" / "train.log").stat().st_mtime_ns
    assert "report:" in run(*arguments)
    after = (runs / "small" / "trials" / "00000" / "seed-1" / "train.log").stat().st_mtime_ns
    assert before == after
    study = yaml.safe_load(path.read_text())
    study["training"]["arguments"]["lr"] = 0.01
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    assert "training.arguments.lr (0.003, now 0.01)" in run(*arguments, status=1)


def _convert(trial: Path, data: Path, folder: Path) -> None:
    """A trained checkpoint gets another plan, and fairseq-generate takes it."""
    best, out = trial / "seed-1" / "checkpoints" / "checkpoint_best.pt", folder / "shared.pt"
    plan = json.dumps({"decoder_self": "multi_query"})
    command = ("convert", str(best), "--plan", plan, "--out", str(out))
    text = run(*command, "--calibrate", str(data))
    assert re.search(r"decoder_self\.0 +multi_query +[\d.]+% +[\d.]+%", text)
    assert re.search(r"validation loss, bits per token: ([\d.]+) -> [\d.]+", text)
    assert "exists; remove it" in run(*command, status=2)
    means = run(*command, "--calibrate", str(data), "--replace", "--mean-pool")
    assert re.search(r"decoder_self\.0 +multi_query +[\d.]+% +[\d.]+%", means)
    run(*command, "--calibrate", str(data), "--replace")
    bad = json.dumps({"decoder_self": {"scheme": "multi_query", "shared_dim": 4}})
    other = ("convert", str(best), "--plan", bad, "--out", str(folder / "other.pt"))
    assert "decoder_self.0: multi_query: unknown option 'shared_dim'" in run(*other, status=2)
    assert not (folder / "other.pt").exists()
    generate = [str(data), "--path", str(out), "--max-tokens", "2000"]
    generate += ["--user-dir", str(ROOT / "fairseq_plugin"), "--gen-subset", "valid"]
    done = run_module("fairseq_cli.generate", generate)
    assert done.status == 0, done.stderr
    assert "Generate valid with beam=5: BLEU" in done.stdout


@pytest.mark.slow
def test_a_search_that_prunes(tmp_path: Path, tiny_translation: PreparedData) -> None:
    """Parameters are those that are left; the pruned checkpoint is there and counts as many."""
    changes = {
        "training/arguments/criterion": "grouped_label_smoothed_cross_entropy",
        "training/arguments/vote-at-update": 2,
        "training/arguments/vote-updates": 2,
        "training/arguments/max-epoch": 2,
        "search/trials": 2,
        "space": {
            "decide": "model",
            "schemes": {"grouped_head": {"keep": ["threshold"], "vote_threshold": [0.5]}},
        },
    }
    path = write(tmp_path, tiny_translation.folder, changes)
    run("search", str(path), "--runs", str(tmp_path / "runs"))
    store = TrialStore("small", open_storage(None, tmp_path / "runs" / "small"), OBJECTIVES)
    baseline, trial = store.trials()
    assert baseline.cost_is_exact
    assert not trial.cost_is_exact
    assert trial.cost is not None
    assert baseline.cost is not None
    assert trial.folder is not None
    checkpoints = Path(trial.folder) / "seed-1" / "checkpoints"
    weights = load_checkpoint(checkpoints / "checkpoint_pruned.pt")["model"]
    left = sum(sum(tensor.tolist()) for name, tensor in weights.items() if name.endswith(".kept"))
    width, heads, modules = 16, 4, 3
    head = width // heads * (4 * width + 3)
    assert modules <= left <= modules * heads
    assert baseline.cost - trial.cost == (modules * heads - left) * head
    table = pd.read_csv(tmp_path / "runs" / "small" / "report" / "trials.csv")
    assert "; left: encoder_self " in table["plan"][1]
    folder = "checkpoints/trial-1-run-1"
    pruning = f" && nas-attn prune {folder}/checkpoint_best.pt --out {folder}/checkpoint_pruned.pt"
    assert table["command"][1].endswith(pruning)
    assert "nas-attn prune" not in table["command"][0]

    again = tmp_path / "again.pt"
    text = run("prune", str(checkpoints / "checkpoint_best.pt"), "--out", str(again))
    assert re.search(rf"parameters +{baseline.cost:,} +{trial.cost:,} ", text)
    assert "decoder_self.0" in text
    printed = run("prune", str(checkpoints / "checkpoint_best.pt"), "--out", str(again), status=2)
    assert "exists; remove it, name another file, or say --replace" in printed
    multi_head = Path(baseline.folder or "") / "seed-1" / "checkpoints" / "checkpoint_best.pt"
    out = str(tmp_path / "voted.pt")
    printed = run("prune", str(multi_head), "--out", out, "--refit", status=2)
    assert "need --calibrate" in printed
    printed = run("prune", str(multi_head), "--out", out, status=2)
    assert "no scheme of its plan prunes" in printed
    data = str(tiny_translation.folder)
    arguments = ["--calibrate", data, "--refit", "--num-groups", "3", "--keep", "pillars"]
    text = run("prune", str(multi_head), "--out", out, *arguments)
    assert re.search(r"encoder_decoder.0 +4 +3 ", text)


@pytest.mark.slow
def test_ctrl_c_leaves_a_search_that_goes_on(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    path = write(tmp_path, tiny_translation.folder, {"search/trials": 1})
    arguments = ["search", str(path), "--runs", str(tmp_path / "runs")]
    driver = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        # Shells start background jobs with SIGINT ignored; the driver is to see a terminal's.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "runs").glob("small/trials/*/seed-1/train.log")):
        assert driver.poll() is None
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "run the same command again to resume" in output
    assert "report:" in run(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "side", "criterion", "space", "tool"),
    [
        (
            "language_modeling",
            "decoder",
            "cross_entropy",
            "collaborative_per_layer",
            "fairseq-eval-lm",
        ),
        ("masked_lm", "encoder", "masked_lm", "all_schemes", "fairseq-validate"),
    ],
)
def test_a_language_model_search(
    task: str,
    side: str,
    criterion: str,
    space: str,
    tool: str,
    tmp_path: Path,
    tiny_language: PreparedData,
) -> None:
    """With the random sampler, on the loss that these criteria log; then the report."""
    study = {
        "name": "language",
        "data": {"folder": str(tiny_language.folder)},
        "training": {
            "task": task,
            "arguments": {
                f"{side}-layers": 2,
                f"{side}-embed-dim": 64,
                f"{side}-attention-heads": 4,
                "tokens-per-sample": 32,
                "criterion": criterion,
                "optimizer": "adam",
                "lr": 0.003,
                "max-tokens": 512,
                "max-epoch": 1,
            },
        },
        "space": space,
        "objectives": {"metric": "loss", "costs": ["attention", "flops"]},
        "search": {"trials": 2, "startup_trials": 0, "sampler": "random"},
    }
    path = tmp_path / "language.yaml"
    path.write_text(yaml.safe_dump(study))
    runs = ["--runs", str(tmp_path / "runs")]
    assert "report:" in run("search", str(path), *runs)
    out = tmp_path / "report"
    run("report", str(path), *runs, "--out", str(out))
    table = pd.read_csv(out / "front.csv")
    assert table["baseline"].any()
    assert (table["cost"] == table["attention"]).all()
    assert (table["effective"] < table["total"]).all()
    redundant = table["total"] - table["effective"]
    assert (table["cost"] - table["effective_cost"] == redundant).all()
    assert tool in (out / "index.html").read_text()
    assert "effective parameters" in (out / "summary.md").read_text()
    assert "2 of 2 finished" in run("status", str(path), *runs)
