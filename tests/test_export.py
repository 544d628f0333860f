"""What is exported works where it is put; what cannot be exported says why and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from optuna.trial import TrialState

from nas_attn.analysis.trials import Trials
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import BASELINE, DUPLICATE
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.checkpoints import read_checkpoint, save_checkpoint
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.portable import make_portable, without_paths
from nas_attn.literals import parse_count
from nas_attn.plan import AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.study.study import Study
from nas_attn.workflows.export import best_within, comparison_text, export_trial, trial_with_number
from tests.helpers.cli import invoke, run
from tests.helpers.records import BLEU, OBJECTIVES, trial
from tests.helpers.studies import write

RECORDS = [
    trial(0, 1000, 2.0, **{BASELINE: True}),
    trial(1, 600, 2.5),
    trial(2, 500, 2.25),
    trial(3, 800, 1.9),
    trial(4, 300, 3.0),
    trial(5, 300, 1.0, **{DUPLICATE: 4}),
]
TRIALS = Trials(RECORDS, OBJECTIVES)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500000", 500_000),
        ("500k", 500_000),
        ("20M", 20_000_000),
        ("1.5M", 1_500_000),
        ("0.29M", 290_000),
        ("2G", 2_000_000_000),
        (" 7 ", 7),
        ("2e7", 20_000_000),
    ],
)
def test_amounts(text: str, amount: int) -> None:
    assert parse_count(text, "--best-under") == amount


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "M", "1,5M", "20m", "1e", "1e99", "9" * 5000, "nan", "0.4", "٣", "2MM"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match=r"--best-under: .* is no amount; write a number"):
        parse_count(text, "--best-under")


def test_the_best_within_a_budget() -> None:
    assert best_within(TRIALS, 10_000).number == 3
    assert best_within(TRIALS, 800).number == 3
    assert best_within(TRIALS, 799).number == 2
    assert best_within(TRIALS, 300).number == 4  # trial 5 has no training of its own
    better = [trial(0, 10, 30.0, BLEU), trial(1, 20, 31.0, BLEU), trial(2, 90, 33.0, BLEU)]
    assert best_within(Trials(better, BLEU), 20).number == 1


def test_nothing_within_a_budget() -> None:
    with pytest.raises(UsageError, match="within 299 total parameters: the smallest is trial 4"):
        best_within(TRIALS, 299)
    with pytest.raises(UsageError, match="no trial is trained yet"):
        best_within(TRIALS[:0], 299)


def test_trials_that_are_not_trained() -> None:
    assert trial_with_number(TRIALS, 3).number == 3
    with pytest.raises(UsageError, match="no trial 9; trained trials: 0, 1, 2, 3, 4"):
        trial_with_number(TRIALS, 9)
    with pytest.raises(UsageError, match="trial 5 repeats trial 4: take --trial 4"):
        trial_with_number(TRIALS, 5)
    failed = replace(TRIALS[1], state=TrialState.FAIL)
    with pytest.raises(UsageError, match=r"trial 1 has no model \(failed\)"):
        trial_with_number(Trials([TRIALS[0], failed], OBJECTIVES), 1)


def test_the_comparison_with_the_baseline() -> None:
    text = comparison_text(TRIALS[3], TRIALS)
    assert "the baseline has 2.0000 with 1,000: -0.1000 (better) for -20.0%" in text
    assert "(worse)" in comparison_text(TRIALS[2], TRIALS)
    assert "is the multi-head baseline" in comparison_text(TRIALS[0], TRIALS)
    assert "baseline is not trained" in comparison_text(TRIALS[2], TRIALS[1:])
    higher = [trial(0, 10, 30.0, BLEU, **{BASELINE: True}), trial(1, 20, 31.0, BLEU)]
    assert "+1.0000 (better)" in comparison_text(higher[1], Trials(higher, BLEU))


@dataclass
class Searched:
    """A study that has been searched, and its data."""

    path: Path
    runs: Path
    data: PreparedData

    @property
    def arguments(self) -> list[str]:
        return ["export", str(self.path), "--runs", str(self.runs)]

    @property
    def study(self) -> Study:
        return load_study(str(self.path), runs=self.runs)

    @property
    def trials(self) -> Trials:
        storage = open_storage(None, self.runs / self.study.config.name)
        store = TrialStore(self.study.config.name, storage, self.study.objectives)
        return Trials.of(store, self.runs / self.study.config.name)


def search(folder: Path, data: PreparedData, changes: dict[str, Any]) -> Searched:
    searched = Searched(write(folder, data.folder, changes), folder / "runs", data)
    invoke("search", str(searched.path), "--runs", str(searched.runs), "--workers", "1")
    return searched


@pytest.fixture(scope="module")
def translating(
    tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData
) -> Searched:
    """Two seeds; heads are voted out; logs go elsewhere; embeddings began as a file said."""
    folder = tmp_path_factory.mktemp("translating")
    changes = {
        "training/arguments/tensorboard-logdir": "logs-of-alice",
        "training/arguments/criterion": "grouped_label_smoothed_cross_entropy",
        "training/arguments/vote-at-update": 2,
        "training/arguments/vote-updates": 2,
        "training/arguments/max-epoch": 2,
        "training/seeds": [3, 4],
        "search/trials": 2,
        "space": {
            "decide": "model",
            "schemes": {"grouped_head": {"keep": ["threshold"], "vote_threshold": [0.5]}},
        },
    }
    searched = search(folder, tiny_translation, changes)
    for path in searched.runs.rglob("checkpoint*.pt"):
        state = read_checkpoint(path)
        state["cfg"]["model"].encoder_embed_path = str(folder / "vectors.txt")
        save_checkpoint(state, path)
    return searched


@pytest.fixture(scope="module")
def modelling(tmp_path_factory: pytest.TempPathFactory, tiny_language: PreparedData) -> Searched:
    arguments = {
        "decoder-layers": 1,
        "decoder-embed-dim": 16,
        "decoder-attention-heads": 4,
        "optimizer": "adam",
        "lr": 0.003,
        "tokens-per-sample": 32,
        "max-tokens": 512,
        "max-epoch": 1,
    }
    changes = {
        "training": {"task": "language_modeling", "arguments": arguments},
        "objectives": {"metric": "loss"},
        "search/trials": 1,
    }
    return search(tmp_path_factory.mktemp("modelling"), tiny_language, changes)


def commands(folder: Path) -> list[str]:
    return re.findall(r"```\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)


def shell(command: str, folder: Path) -> str:
    """Run a printed command as a user does, in a folder, with this Python's commands."""
    scripts = folder.parent / "scripts"
    scripts.mkdir(exist_ok=True)
    modules = {"nas-attn": "nas_attn.cli.main"}
    for tool in ("generate", "interactive", "eval-lm"):
        modules[f"fairseq-{tool}"] = f"fairseq_cli.{tool.replace('-', '_')}"
    for name, module in modules.items():
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m {module} "$@"\n')
        script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    """For a while nothing is where it was."""
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    folder.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(folder)


def test_settings_that_name_places_are_cleared() -> None:
    model = Namespace(
        encoder_embed_path="vectors", arch="multi_head_transformer", optimizer="adam",
        attention_plan='{"a": "b/c"}', tensorboard_logdir="logs", save_dir="/home/alice/x", lr=[1],
        plasma_path="/tmp/other", bpe_codes="../codes", nested={"lists": ["/a", "b", "~alice"]},
    )  # fmt: skip
    task = {
        "_name": "translation", "data": "/home/alice/data", "source_lang": "de",
        "eval_bleu_args": '{"beam": 5}', "eval_bleu_detok_args": '{"file": "/x"}',
        "gen_subset": "../x", "train_subset": "a/b",
    }  # fmt: skip
    common = {"user_dir": "plugin", "log_file": "C:\\log", "wandb_project": "alice", "seed": 1}
    checkpoint = {"restore_file": "checkpoint_last.pt", "finetune_from_model": "start.pt"}
    cfg = {"model": model, "task": task, "common": common, "checkpoint": checkpoint}
    make_portable({"cfg": cfg})
    assert vars(model) == {
        "encoder_embed_path": None, "arch": "multi_head_transformer", "optimizer": "adam",
        "attention_plan": '{"a": "b/c"}', "tensorboard_logdir": None, "save_dir": "checkpoints",
        "lr": [1], "plasma_path": "/tmp/plasma", "bpe_codes": None,
        "nested": {"lists": [None, "b", None]},
    }  # fmt: skip
    assert task == {
        "_name": "translation", "data": ".", "source_lang": "de",
        "eval_bleu_args": '{"beam": 5}', "eval_bleu_detok_args": "{}",
        "gen_subset": "test", "train_subset": "train",
    }  # fmt: skip
    assert common == {"user_dir": None, "log_file": None, "wandb_project": None, "seed": 1}
    assert checkpoint == {"restore_file": "checkpoint_last.pt", "finetune_from_model": None}


def test_a_sentencepiece_model_without_its_paths(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc def ghi\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "made"), vocab_size=20, hard_vocab_limit=False,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    model = (tmp_path / "made.model").read_bytes()
    made = without_paths(model)
    assert str(tmp_path).encode() in model
    assert str(tmp_path).encode() not in made
    before, after = (sentencepiece.SentencePieceProcessor(model_proto=m) for m in (model, made))
    assert before.encode("abc defghi", out_type=str) == after.encode("abc defghi", out_type=str)
    assert without_paths(made) == made
    for damaged in (model[:-3], b"\xff" * 9):
        with pytest.raises(NasAttnError, match="no SentencePiece model"):
            without_paths(damaged)


@pytest.mark.slow
def test_an_exported_translator_works_elsewhere(translating: Searched, tmp_path: Path) -> None:
    chosen = next(t for t in translating.trials if t.pruned)
    out = tmp_path / "there" / "model"
    text = invoke(*translating.arguments, "--trial", str(chosen.number), "--out", str(out))
    assert f"trial {chosen.number}: everywhere grouped_head" in text
    change = r"with [\d,]+: [+-][\d.]+ ±[\d.]+ \(95 % interval; (better|worse|no clear)"
    assert re.search(change, text)
    names = {path.name for path in out.iterdir() if not path.name.startswith("test.")}
    wanted = "README.md checkpoint.pt plan.json dict.src.txt dict.tgt.txt sentencepiece.model"
    assert names == set(wanted.split())
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    state = read_checkpoint(out / "checkpoint.pt")
    assert state["last_optimizer_state"] is None
    plan = AttentionPlan.read(str(out / "plan.json"))
    assert plan == chosen.pruned[0] == AttentionPlan.parse(state["cfg"]["model"].attention_plan)
    places = [translating.runs, translating.data.folder.parent, Path(__file__).parent.parent]
    private = [*map(str, [*places, Path.home()]), "vectors.txt", "alice"]
    if len(socket.gethostname()) > 5:  # weights hold any two letters
        private.append(socket.gethostname())
    for path in out.iterdir():
        content = path.read_bytes()
        assert [text for text in private if text.encode() in content] == [], path.name
    assert f"seed 3, with {chosen.losses[0]:.4f}" in (out / "README.md").read_text()

    moved = tmp_path / "a folder's other place"
    out.rename(moved)
    translate, evaluate = commands(moved)
    sentence = "pa na ne ri"
    with gone(translating.path.parent), gone(translating.data.folder):
        printed = shell(re.sub(r"echo '.*?'", f"echo '{sentence}'", translate), moved)
        assert "S-0\t▁pa ▁na ▁ne ▁ri" in printed
        assert re.search(r"^D-0\t-[\d.]+\t\w+", printed, re.MULTILINE)
        assert "Generate test with beam=5: BLEU = " in shell(evaluate, moved)


@pytest.mark.slow
def test_heads_are_cut_where_the_pruned_checkpoint_is_gone(
    translating: Searched, tmp_path: Path
) -> None:
    chosen = next(t for t in translating.trials if t.pruned)
    copy = tmp_path / "trial"
    shutil.copytree(str(chosen.folder), copy)
    (copy / "seed-3" / "checkpoints" / "checkpoint_pruned.pt").unlink()
    study, moved = translating.study, replace(chosen, folder=str(copy))
    export_trial(study, chosen, translating.trials, tmp_path / "kept")
    made = export_trial(study, moved, translating.trials, tmp_path / "cut")
    assert made.plan == chosen.pruned[0]
    kept, cut = (
        read_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("kept", "cut")
    )
    assert kept.keys() == cut.keys()
    assert all(torch.equal(kept[name], cut[name]) for name in kept)


@pytest.mark.slow
def test_an_exported_language_model_works(modelling: Searched, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()  # an empty folder is as good as none
    text = invoke(*modelling.arguments, "--best-under", "9M", "--out", str(out))
    assert "it is the multi-head baseline" in text
    assert "--no-test-split leaves it out" in text
    assert {path.name for path in out.iterdir()} == {
        "README.md", "checkpoint.pt", "plan.json", "dict.txt", "sentencepiece.model",
        "test.bin", "test.idx",
    }  # fmt: skip
    (evaluate,) = commands(out)
    shell(evaluate, out)
    without = tmp_path / "without"
    invoke(*modelling.arguments, "--trial", "0", "--no-test-split", "--out", str(without))
    assert not list(without.glob("test.*"))
    (evaluate,) = commands(without)
    assert evaluate.startswith("OMP_NUM_THREADS=1 fairseq-eval-lm DATA ")
    shell(evaluate.replace("DATA", f"'{modelling.data.folder}'"), without)


@pytest.mark.slow
def test_a_run_folder_that_was_moved_is_exported(modelling: Searched, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    modelling.runs.rename(moved)
    try:
        arguments = ["export", str(modelling.path), "--runs", str(moved)]
        run(*arguments, "--trial", "0", "--out", str(tmp_path / "model"))
        assert (tmp_path / "model" / "checkpoint.pt").is_file()
    finally:
        moved.rename(modelling.runs)


@pytest.mark.slow
def test_what_is_refused_leaves_nothing(
    modelling: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arguments = tmp_path / "model", [*modelling.arguments, "--out", str(tmp_path / "model")]
    for more in ([], ["--trial", "0", "--best-under", "9M"]):
        with pytest.raises(UsageError, match="either --trial N or --best-under AMOUNT"):
            invoke(*arguments, *more)
    with pytest.raises(UsageError, match="within 10 total parameters: the smallest is trial 0"):
        invoke(*arguments, "--best-under", "10")
    text = run(*arguments, "--best-under", "10", status=2)
    assert text.startswith("nas-attn: no trained trial is within 10")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder; name another"):
        invoke(*modelling.arguments, "--trial", "0", "--out", str(tmp_path / "file"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(UsageError, match="is not empty; remove it or name another"):
        invoke(*modelling.arguments, "--trial", "0", "--out", str(tmp_path / "full"))
    with pytest.raises(UsageError, match=r"model is not written: .*exists"):
        invoke(*modelling.arguments, "--trial", "0", "--out", str(tmp_path / "file" / "model"))

    with monkeypatch.context() as patched:
        patched.setattr(
            "nas_attn.workflows.export.shutil.disk_usage", lambda _: SimpleNamespace(free=10)
        )
        with pytest.raises(UsageError, match=r"no room in .* MB are needed"):
            invoke(*arguments, "--trial", "0")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for function, error in ((full, UsageError), (stop, KeyboardInterrupt)):
        with monkeypatch.context() as patched:
            patched.setattr("nas_attn.workflows.export.shutil.copyfile", function)
            with pytest.raises(error):
                export_trial(modelling.study, modelling.trials[0], modelling.trials, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]

    (trial,) = modelling.trials
    gone = replace(trial, folder=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"checkpoint of trial 0 is gone .*commands\.sh"):
        export_trial(modelling.study, gone, modelling.trials, out)
    broken = tmp_path / "broken" / "seed-1" / "checkpoints" / "checkpoint_best.pt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"none")
    with pytest.raises(NasAttnError, match="no checkpoint that can be read"):
        export_trial(
            modelling.study, replace(trial, folder=str(tmp_path / "broken")), modelling.trials, out
        )
    assert not out.exists()


def test_replayed_curves_leave_no_model(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = write(tmp_path, tiny_translation.folder, {"replay": {}})
    study = load_study(str(path), runs=tmp_path)
    with pytest.raises(UsageError, match="replayed learning curves leave no model"):
        export_trial(study, TRIALS[0], TRIALS, tmp_path / "model")


@pytest.mark.slow
def test_pruned_heads_come_back_for_stock_fairseq(translating: Searched, tmp_path: Path) -> None:
    chosen = next(t for t in translating.trials if t.pruned)
    out = tmp_path / "model"
    text = run(
        *translating.arguments, "--trial", str(chosen.number), "--out", str(out), "--json",
        "--format", "fairseq", "--seed", "4",
    )  # fmt: skip
    found = json.loads(text)
    assert found["seed"] == {
        "seed": 4, "place": 1, "loss": pytest.approx(chosen.losses[1]), "how": "as asked for",
    }  # fmt: skip
    assert found["check"] == {"same": 50, "count": 50, "what": "sentences: same tokens"}
    assert found["change"]["interval"] > 0.0
    state = read_checkpoint(out / "checkpoint.pt")
    assert "encoder.layers.0.self_attn.q_proj.weight" in state["model"]
    translate, _ = commands(out)
    printed = shell(f"export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1; {translate}", out)
    assert re.search(r"^D-0\t", printed, re.MULTILINE)
