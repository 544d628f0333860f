"""`nas-attn sensitivity` with a real baseline, as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from nas_attn.cli.main import app
from nas_attn.engine.config import ExecutionConfig
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.checkpoints import read_checkpoint, save_checkpoint
from nas_attn.fairseq_tools.commands import evaluation_command
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.convert import (
    calibration_calls,
    convert_checkpoint,
    convert_trained,
    load_trained,
)
from nas_attn.fairseq_tools.convert import validation_losses as losses_of
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionPlan
from nas_attn.study.sensitivity import target_of_checkpoint
from nas_attn.trials.processes.programs import executable_form
from nas_attn.trials.scores import parse_scores
from tests.helpers.cli import kill_once
from tests.helpers.studies import write

pytestmark = pytest.mark.slow

CHANGES: dict[str, Any] = {
    "training/arguments/max-epoch": 6,
    "training/arguments/lr": 0.01,
    "search/scores": "measured",
    "space": {
        "schemes": {
            "multi_head": {},
            "multi_query": {},
            "reduced_key": {"key_dim": [4, 8]},
            "head_embedding_add": {},
        },
        "decide": "site",
    },
}


class Measured:
    """A study whose measurements were killed, and went on."""

    def __init__(self, folder: Path, data: PreparedData) -> None:
        self.data = data
        study = str(write(folder, data.folder, CHANGES))
        self.folder = folder / "runs" / "small"
        self.arguments = ["sensitivity", study, "--runs", str(self.folder.parent), "--checks", "12"]
        kill_once(lambda: len(self.logs()) >= 4, *self.arguments)
        self.finished = {
            log: time_written
            for log, time_written in self.logs().items()
            if (log.parent / "finished.json").is_file()
            and json.loads((log.parent / "finished.json").read_text())["finished"]
        }
        self.text = self.command()

    def command(self, *more: str) -> str:
        done = CliRunner().invoke(app, [*self.arguments, *more])
        assert done.exit_code in (0, 1), done.output  # 1: such a small model may not add up
        return done.output

    def logs(self) -> dict[Path, int]:
        logs = (self.folder / "sensitivity").glob("trials/*/run/train.log")
        return {log: log.stat().st_mtime_ns for log in logs}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Measured:
    return Measured(tmp_path_factory.mktemp("sensitivity"), tiny_translation)


def test_changes_are_those_of_the_conversions(measured: Measured) -> None:
    table = pd.read_csv(measured.folder / "sensitivity" / "sensitivity.csv")
    assert len(table) == 3 * 3, "added embeddings cannot inherit"
    assert "6 choices are the baseline's own, or cannot inherit" in measured.text
    checkpoint = measured.folder / "trials" / "00000" / "seed-1" / "checkpoints"
    for _, row in table.iloc[::4].iterrows():
        trained = load_trained(checkpoint / "checkpoint_best.pt")
        before = losses_of(trained, measured.data.folder)
        calls = calibration_calls(trained, measured.data.folder)
        convert_trained(trained, AttentionPlan.parse(row["plan"]), calls)
        change, error = losses_of(trained, measured.data.folder).change_from(before)
        assert row["change"] == pytest.approx(change, abs=1e-6)
        assert row["change_error"] == pytest.approx(error, rel=1e-3)
        assert row["divergence"] > 0 < row["divergence_error"]


def test_predictions_are_tested_on_plans_that_change_everything(measured: Measured) -> None:
    checks = pd.read_csv(measured.folder / "sensitivity" / "checks.csv")
    assert len(checks) >= 6
    assert set(checks["kind"]) == {"random", "predicted"}
    assert (checks["predicted"] - checks["measured"]).abs().max() < 0.5
    text = " ".join(measured.text.split())
    assert f"changes of {len(checks)} plans: tau" in text
    assert re.search(r"By sums of each alone, tau is: loss -?\d\.\d+, divergence -?\d\.\d+\.", text)
    predicted = pd.read_csv(measured.folder / "sensitivity" / "predicted.csv")
    assert predicted["cost"].is_monotonic_increasing
    assert predicted["predicted"].is_monotonic_decreasing
    assert (measured.folder / "sensitivity" / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_measured_twice(measured: Measured) -> None:
    assert len(measured.finished) >= 2
    assert measured.finished.items() <= measured.logs().items()
    before = measured.logs()
    measured.command()
    assert measured.logs() == before


@pytest.mark.long
def test_distilled_conversions_are_measured_beside(measured: Measured) -> None:
    """By every scheme of the space; tests of predictions train no module anew."""
    plain = pd.read_csv(measured.folder / "sensitivity" / "sensitivity.csv")
    logs = measured.logs()
    text = measured.command("--distil", "--checks", "4")
    assert "3 choices are the baseline's own, or cannot inherit" in text
    assert measured.logs() == logs
    folder = measured.folder / "sensitivity-distilled"
    table = pd.read_csv(folder / "sensitivity.csv")
    assert len(table) == len(plain) + 3, "added embeddings inherit"
    assert table["choice"].str.contains("head_embedding_add").sum() == 3
    kept = list((folder / "modules").iterdir())
    assert len(kept) == len(table), "each change is of one module"
    done = [torch.load(path, weights_only=True)["distilled"] for path in kept]
    assert all(one["after"] <= one["before"] for one in done)
    assert sum(one["after"] for one in done) < 0.95 * sum(one["before"] for one in done)
    for log in (folder / "trials").glob("*/run/train.log"):
        assert "changed by" in log.read_text()


def test_limits(measured: Measured) -> None:
    measured.command("--max-schemes", "1", "--checks", "0")
    predicted = pd.read_csv(measured.folder / "sensitivity" / "predicted.csv")
    for text in predicted["plan"]:
        choices = [choice for _, of_site in AttentionPlan.parse(text) for choice in of_site]
        assert len({choice.scheme for choice in choices}) == 1


def test_recommended_plans_translate_as_fairseq_generate(
    measured: Measured, tmp_path: Path
) -> None:
    text = " ".join(measured.command("--metric", "bleu", "--checks", "0", "--points", "3").split())
    folder = measured.folder / "sensitivity"
    predicted = pd.read_csv(folder / "predicted.csv")
    known = predicted[predicted["bleu"].notna()]
    assert 1 <= len(known) <= 3
    assert "The trained model translates the validation set with BLEU" in text
    assert "translated 1 of" in text
    again = measured.command("--metric", "bleu", "--checks", "0", "--points", "3")
    assert "translated 1 of" not in again, "scores are on record"
    row = known.iloc[0]
    checkpoint = measured.folder / "trials/00000/seed-1/checkpoints/checkpoint_best.pt"
    convert_checkpoint(
        checkpoint,
        AttentionPlan.parse(row["plan"]),
        tmp_path / "converted.pt",
        data=measured.data.folder,
    )
    training = TrainingConfig(task="translation", arguments={})
    command = evaluation_command(training, measured.data, tmp_path / "converted.pt", "valid")
    done = subprocess.run(
        executable_form(tuple(command)), capture_output=True, text=True, check=True
    )
    score = parse_scores(done.stdout + done.stderr)["bleu"]
    assert row["bleu"] == pytest.approx(score, abs=0.006), "fairseq prints two digits"


def test_limits_on_costs_and_a_second_cost(measured: Measured) -> None:
    folder = measured.folder / "sensitivity"
    measured.command("--checks", "0", "--second-cost", "cache_bytes")
    free = pd.read_csv(folder / "predicted.csv")
    surface = pd.read_csv(folder / "surface.csv")
    most = int(surface["second_cost"].median())
    assert (folder / "surface.png").read_bytes().startswith(b"\x89PNG")
    assert f"{len(surface)} plans are predicted" in (folder / "summary.md").read_text()
    measured.command("--checks", "0", "--limit", f"cache_bytes={most}")
    within = pd.read_csv(folder / "predicted.csv")
    # The best within a limit is what the surface has within it, and no more than is best without.
    for _, row in within.iterrows():
        fit = surface[(surface["second_cost"] <= most) & (surface["cost"] <= row["cost"])]
        assert row["predicted"] == pytest.approx(fit["predicted"].min(), abs=1e-5)
        assert row["predicted"] >= free[free["cost"] <= row["cost"]]["predicted"].min() - 1e-5
    assert len(within) > 1


def test_time_of_decoding_is_a_cost(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.fairseq_tools.decoding_times.ROUNDS", 1)
    folder = measured.folder / "sensitivity"
    options = ["--checks", "0", "--points", "3"]
    text = " ".join(measured.command(*options, "--second-cost", "decoding_microseconds").split())
    assert "timing 12 kinds of modules" in text, "three choices and the baseline's, at three sites"
    assert re.search(r"Decoding of \d+ recommended plans takes \d\.\d\d", text)
    assert "recommended plans takes" in (folder / "summary.md").read_text()
    surface = pd.read_csv(folder / "surface.csv")
    assert (surface["second_cost"] > 0).all()
    again = measured.command(*options, "--second-cost", "decoding_microseconds")
    assert "kinds of modules" not in again, "times are on record"
    most = int(surface["second_cost"].median())
    measured.command(*options, "--limit", f"decoding_microseconds={most}")
    within = pd.read_csv(folder / "predicted.csv")
    for _, row in within.iterrows():
        fit = surface[(surface["second_cost"] <= most) & (surface["cost"] <= row["cost"])]
        assert row["predicted"] == pytest.approx(fit["predicted"].min(), abs=1e-5)
    measured.command(*options, "--cost", "decoding_microseconds")
    fastest = pd.read_csv(folder / "predicted.csv")["cost"].min()
    assert fastest == surface["second_cost"].min()


@pytest.mark.long
def test_scores_by_gradients(measured: Measured, tmp_path: Path) -> None:
    """Of all changes; measured is what recommended plans consist of, and what is next to them."""
    checkpoint = measured.folder / "trials" / "00000" / "seed-1" / "checkpoints"
    arguments = ["sensitivity", str(checkpoint / "checkpoint_best.pt")]
    arguments += ["--data", str(measured.data.folder), "--runs", str(tmp_path / "runs")]
    space = tmp_path / "few.yaml"
    space.write_text(
        "{decide: site, schemes: {multi_head: {}, multi_query: {}, reduced_key: {key_dim: [4, 8]}}}"
    )
    arguments += ["--space", str(space), "--points", "2", "--checks", "12"]

    def command(*more: str) -> str:
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code in (0, 1), done.output
        return " ".join(done.output.split())

    text = command("--scores", "gradient")
    (own,) = (tmp_path / "runs").iterdir()
    (folder,) = (own / "sensitivity").glob("few-*")
    scored = pd.read_csv(folder / "sensitivity.csv")
    assert set(scored["by"]) == {"gradient"}
    assert (scored["score"] == scored["change"]).all(), "nothing says yet by how much they are off"
    assert f"scoring {len(scored)} plans by gradients" in text
    assert f"{len(scored)} single changes were scored by gradients, 0 measured" in text
    text = command("--scores", "auto", "--improve", "4")
    assert f"scoring {len(scored)} plans" not in text, "they are on record"
    table = pd.read_csv(folder / "sensitivity.csv")
    assert 0 < (table["by"] == "measured").sum() < len(table)
    known = {row["plan"]: row["by"] for _, row in table.iterrows()}
    predicted = pd.read_csv(folder / "predicted.csv")
    improved = pd.read_csv(folder / "improved.csv")
    assert set(improved["cost"]) <= set(predicted["cost"])
    assert (improved["best_measured"] <= improved["measured"]).all()
    assert (improved["best_cost"] <= improved["cost"]).all()
    assert f"of {len(improved)} recommended plans were bettered" in text
    assert "recommended plans were bettered" in (folder / "summary.md").read_text()
    trials = len(list((own / "sensitivity" / "trials").iterdir()))
    command("--scores", "auto", "--improve", "4")
    assert len(list((own / "sensitivity" / "trials").iterdir())) == trials, "it was done before"
    command("--scores", "measured", "--checks", "0")
    whole = pd.read_csv(folder / "sensitivity.csv")
    assert set(whole["by"]) == {"measured"}
    assert list(whole["score"]) == list(scored["score"])
    both = table[table["plan"].map(known) == "measured"].merge(whole, on="plan")
    assert list(both["change_x"]) == list(both["change_y"]), "nothing is measured twice"


def test_replayed_studies_have_no_model(measured: Measured) -> None:
    with pytest.raises(NasAttnError, match="leave no model that could be converted"):
        CliRunner().invoke(app, [*measured.arguments, "--set", "replay={}"], catch_exceptions=False)


@pytest.mark.long
def test_a_search_by_predictions(
    tmp_path: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever so small a model's predictions are worth, they are followed here."""
    monkeypatch.setattr("nas_attn.rank_agreement.LEAST_OVERALL", -1.0)
    monkeypatch.setattr("nas_attn.rank_agreement.LEAST_WITHIN", -1.0)
    search = {"trials": 7, "strategy": "sensitivity", "warm_start": "baseline"}
    study = str(write(tmp_path, tiny_translation.folder, CHANGES | {"search": search}))
    arguments = [study, "--runs", str(tmp_path / "runs")]

    def command(name: str, *more: str) -> str:
        done = CliRunner().invoke(app, [name, *arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    command("search")
    folder = tmp_path / "runs" / "small"
    table = pd.read_csv(folder / "report" / "trials.csv")
    predicted = pd.read_csv(folder / "sensitivity" / "predicted.csv")
    assert list(table["state"]) == ["complete"] * len(table)
    assert table["baseline"].sum() == 1
    assert table["warm"].sum() == len(table) - 1
    assert 5 <= len(table) <= 7, "a front may have fewer points"
    assert set(table["cost"]) <= {*predicted["cost"], table["cost"][0]}
    outcomes = pd.read_csv(folder / "sensitivity" / "outcomes.csv")
    assert len(outcomes) == len(table) - 1, "what training made of predictions is in it, too"
    assert f"{len(table)} proposals, all as on record" in command("proposals", "--check")
    page = (folder / "report" / "index.html").read_text()
    assert ">Predicted front</h2>" in page
    assert page.count('src="data:image/svg+xml;base64,') == 2
    logs = {log: log.stat().st_mtime_ns for log in folder.glob("**/*.log")}
    command("search")
    changed = {log.name for log, then in logs.items() if log.stat().st_mtime_ns != then}
    assert changed <= {"journal.log"}


def test_a_stock_checkpoint_is_measured_too(measured: Measured, tmp_path: Path) -> None:
    """By any exact cost: operations, and bytes of the cache."""
    run = measured.folder / "trials" / "00000" / "seed-1" / "checkpoints"
    space = tmp_path / "space.yaml"
    space.write_text("schemes: {multi_head: {}, multi_query: {}, reduced_key: {key_dim: [8]}}\n")
    arguments = ["sensitivity", str(run / "checkpoint_best.pt"), "--runs", str(tmp_path / "runs")]
    arguments += ["--space", str(space), "--checks", "0"]
    result = CliRunner().invoke(app, arguments)
    assert "with --data DATA" in str(result.exception)
    data = ["--data", str(measured.data.folder)]
    result = CliRunner().invoke(app, [*arguments, *data, "--cost", "flops"])
    assert result.exit_code == 0, result.output
    (own,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"checkpoints-checkpoint_best-[0-9a-f]{8}", own.name)
    (folder,) = (own / "sensitivity").glob("space-????????")
    table = pd.read_csv(folder / "sensitivity.csv")
    assert len(table) == 3 * 2
    result = CliRunner().invoke(app, [*arguments, *data, "--cost", "cache_bytes"])
    assert result.exit_code == 0, result.output
    predicted = pd.read_csv(folder / "predicted.csv")
    kept = {"multi_head": 16 + 16, "multi_query": 4 + 4, "reduced_key": 8 + 16}
    for _, row in predicted.iterrows():
        choice = json.loads(row["plan"])["decoder_self"]["scheme"]
        assert row["cost"] == 4 * kept[choice]
    before = (folder / "sensitivity.csv").read_bytes()
    space.write_text("schemes: {multi_head: {}, multi_query: {}}\n")
    result = CliRunner().invoke(app, [*arguments, *data])
    assert result.exit_code == 0, result.output
    assert len(list((own / "sensitivity").glob("space-????????"))) == 2
    assert (folder / "sensitivity.csv").read_bytes() == before, "what another space gave stays"
    space.write_text("schemes: {multi_head: {}, head_embedding_add: {}}\n")
    result = CliRunner().invoke(app, [*arguments, *data])
    assert "no choice of the space can take over what the baseline" in str(result.exception)
    other = tmp_path / "checkpoints" / "checkpoint_best.pt"
    save_checkpoint({**read_checkpoint(run / "checkpoint_best.pt"), "other": 1}, other)
    named = target_of_checkpoint(
        other,
        measured.data.folder,
        str(space),
        cost="attention",
        runs=tmp_path / "runs",
        execution=ExecutionConfig(),
    )
    assert named.folder.name.startswith("checkpoints-checkpoint_best-")
    assert named.folder != own, "another checkpoint of that name has a run folder of its own"
