"""Searches in which heads are voted on: on the trained baseline, or while each trial trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from nas_attn.attention.counting import count_model
from nas_attn.cli.main import app
from nas_attn.fairseq_tools.convert import calibration_calls, convert_trained
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.plan import AttentionPlan
from nas_attn.space import Votes
from nas_attn.study.loading import load_study
from nas_attn.validation_log import read_report
from tests.helpers.cli import COMMAND, invoke, kill_once
from tests.helpers.studies import write

pytestmark = pytest.mark.slow

INHERITED: dict[str, Any] = {
    "space": {
        "decide": "site",
        "schemes": {
            "multi_head": {},
            "multi_query": {},
            "grouped_head (pillars)": {"keep": ["pillars"], "feature": ["value", "attention"]},
            "grouped_head (threshold)": {"keep": ["threshold"], "vote_threshold": [0.5]},
        },
    },
    "search": {
        "trials": 6,
        "sampler": "stratified_random",
        "warm_start": {"source": "baseline", "fraction": 0.25},
    },
}
IN_TRAINING: dict[str, Any] = {
    "training/arguments/criterion": "grouped_label_smoothed_cross_entropy",
    "training/arguments/vote-at-update": 6,
    "training/arguments/vote-updates": 2,
    "training/arguments/max-update": 10,
    "training/arguments/max-epoch": None,
    "space": "all_schemes_grouped",
    "search": {"trials": 8, "startup_trials": 5, "sampler": "tpe"},
}


class Killed:
    """A search whose driver was killed as a trial began to train, and went on."""

    def __init__(self, folder: Path, data: PreparedData, changes: dict[str, Any], trial: int):
        self.data = data
        self.study = str(write(folder, data.folder, changes))
        self.folder = folder / "runs" / "small"
        self.arguments = [self.study, "--runs", str(self.folder.parent)]
        logs = f"trials/{trial:05d}/seed-1/train.log"
        kill_once(
            lambda: list(self.folder.glob(logs)),
            *("search", *self.arguments, "--workers", "1"),
            seconds=600,
        )
        self.before = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*.log")}
        invoke("search", *self.arguments)
        self.table = pd.read_csv(self.folder / "report" / "trials.csv").set_index("trial")

    def plan(self, trial: int) -> AttentionPlan:
        text = (self.folder / "trials" / f"{trial:05d}" / "plan.json").read_text()
        return AttentionPlan.parse(text)

    def run_folder(self, trial: int) -> Path:
        return self.folder / "trials" / f"{trial:05d}" / "seed-1"


@pytest.fixture(scope="module")
def inherited(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Killed:
    return Killed(tmp_path_factory.mktemp("inherited"), tiny_translation, INHERITED, 1)


def test_trials_start_with_the_heads_that_the_baseline_s_votes_left(inherited: Killed) -> None:
    kept = inherited.folder / "sensitivity" / "votes.json"
    votes = Votes.from_json(json.loads(kept.read_text()))
    assert len(votes.settled) == 3 * 3, "one layer at each site, three choices with a vote"
    study = load_study(inherited.study)
    table = inherited.table[inherited.table["state"] == "complete"]
    assert len(table) == 6
    voted = 0
    for number, row in table.iterrows():
        plan = inherited.plan(int(number))
        assert '"keep"' not in plan.dumps()
        trained = load_trained(inherited.run_folder(int(number)) / "checkpoints/checkpoint_best.pt")
        assert trained.plan == plan
        assert count_model(trained.model).total == row["cost"], "exact before any training"
        assert row["cost_certain"]
        assert bool(row["warm"]) == (number > 0)
        voted += "heads=" in row["plan"]
    assert voted >= 1
    assert table["plan"].is_unique
    settled = study.settled(votes)
    for trial in table.index:
        asked = settled.space.as_offered(inherited.plan(trial))
        baseline = load_trained(inherited.run_folder(0) / "start" / "checkpoint_best.pt")
        calls = calibration_calls(baseline, inherited.data.folder)
        assert convert_trained(baseline, asked, calls).plan == inherited.plan(trial)


def test_a_resumed_search_holds_no_vote_again(inherited: Killed) -> None:
    kept = inherited.folder / "sensitivity" / "votes.json"
    calibration = kept.with_name("calibration.pt")
    before = [path.stat().st_mtime_ns for path in (kept, calibration)]
    invoke("search", *inherited.arguments)
    assert before == [path.stat().st_mtime_ns for path in (kept, calibration)]
    assert "proposals, all as on record" in invoke("proposals", *inherited.arguments, "--check")


def test_single_changes_have_votes_among_them(inherited: Killed) -> None:
    done = CliRunner().invoke(app, ["sensitivity", *inherited.arguments, "--checks", "6"])
    assert done.exit_code in (0, 1), done.output  # 1: such a small model may not add up
    table = pd.read_csv(inherited.folder / "sensitivity" / "sensitivity.csv")
    assert len(table) == 3 * 4
    voted = table[table["choice"].str.contains("keep")]
    assert len(voted) == 3 * 3
    assert voted["plan"].str.contains('"heads"').all()
    measured = list((inherited.folder / "sensitivity" / "trials").glob("*/plan.json"))
    assert len(measured) >= table["plan"].nunique()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Killed:
    return Killed(tmp_path_factory.mktemp("mixed"), tiny_translation, IN_TRAINING, 4)


def test_votes_in_training_go_beside_other_schemes(mixed: Killed) -> None:
    table = mixed.table[mixed.table["state"] == "complete"]
    trained = table[table["updates"] > 0]
    assert len(trained) == 8
    assert set(trained["updates"]) == {10}, "a vote takes no update"
    plans = [mixed.plan(int(number)).dumps() for number in trained.index]
    certain = [not re.search('"threshold"', plan) for plan in plans]
    assert list(trained["cost_certain"]) == certain
    assert not all(certain)
    assert any(certain)
    schemes = [{c.scheme for _, cs in mixed.plan(int(n)) for c in cs} for n in trained.index]
    assert any("grouped_head" in some and len(some) > 1 for some in schemes)
    voted = trained[trained["plan"].str.contains("keep=")]
    assert voted["plan"].str.contains("left: ").all()
    page = (mixed.folder / "report" / "summary.md").read_text()
    assert "left: " in page or not mixed.table["on_front"][voted.index].any()


def test_plans_without_groups_train_with_the_plain_loss(mixed: Killed, tmp_path: Path) -> None:
    """The very command of the baseline, but for its criterion, gives the same to the digit."""
    line = (mixed.folder / "trials" / "00000" / "commands.sh").read_text()
    assert "--criterion=grouped_" in line
    assert line.count(" --vote-") == 2
    line = re.sub(r" --vote-[a-z-]+=\d+", "", line).replace("=grouped_", "=")
    assert " --vote-" not in line
    line = line.replace(str(mixed.run_folder(0)), str(tmp_path))
    environment = os.environ | {
        "PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}",
        "NAS_ATTN_REPORT": str(tmp_path / "report.jsonl"),
    }
    subprocess.run(line, shell=True, check=True, cwd=tmp_path, env=environment)
    plain, grouped = (
        [
            (entry["num_updates"], entry["metrics"]["loss"], entry["metrics"]["nll_loss"])
            for entry in read_report(folder)
        ]
        for folder in (tmp_path, mixed.run_folder(0))
    )
    assert plain == grouped
    assert plain[-1][0] == 10
