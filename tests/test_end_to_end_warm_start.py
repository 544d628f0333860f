"""A search whose trials start from the trained baseline, as a user types it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.convert import convert_checkpoint, load_trained, validation_loss
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.fine_tuning import count_updates
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.trials.job import StartFolders
from nas_attn.validation_log import read_report
from tests.helpers.cli import COMMAND, invoke, kill_once
from tests.helpers.studies import write

pytestmark = pytest.mark.slow

CHANGES: dict[str, Any] = {
    "training/seeds": [1, 2],
    "training/arguments/max-epoch": 2,
    "space": {
        "schemes": {
            "multi_head": {},
            "collaborative": {"shared_dim": [4, 8]},
            "head_embedding_add": {},
        },
        "decide": "site",
    },
    "search": {
        "trials": 6,
        "sampler": "stratified_random",
        "warm_start": {"source": "baseline", "fraction": 0.25},
    },
}


class Searched:
    """A search that was killed while a warm trial was fine-tuned, and went on."""

    def __init__(self, folder: Path, data: PreparedData) -> None:
        self.data = data
        self.study = str(write(folder, data.folder, CHANGES))
        self.folder = folder / "runs" / "small"
        self.arguments = ["search", self.study, "--runs", str(self.folder.parent)]
        kill_once(
            lambda: list(self.folder.glob("trials/00001/seed-1/train.log")),
            *(*self.arguments, "--workers", "1"),
        )
        self.first = self.logs()
        invoke(*self.arguments)
        self.table = pd.read_csv(self.folder / "report" / "trials.csv").set_index("trial")

    def logs(self) -> dict[str, int]:
        """Sizes of the logs that say what trials start from."""
        logs = self.folder.glob("trials/*/seed-*/start.log")
        return {f"{log.parent.parent.name}/{log.parent.name}": log.stat().st_size for log in logs}

    def run_folder(self, trial: int, seed: int = 1) -> Path:
        return self.folder / "trials" / f"{trial:05d}" / f"seed-{seed}"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Searched:
    return Searched(tmp_path_factory.mktemp("warm"), tiny_translation)


def test_what_starts_how(searched: Searched) -> None:
    table = searched.table[searched.table["state"] == "complete"]
    assert len(table) == 6
    inherits = ~table["plan"].str.contains("head_embedding_add") & ~table["baseline"]
    assert list(table["warm"]) == list(inherits)
    assert inherits.any()
    assert not inherits[1:].all(), "the space has plans that cannot inherit"
    study = load_study(searched.study)
    tuned = study.jobs.tuning_updates[0]
    whole = read_report(searched.run_folder(0) / "start")[-1]["num_updates"]
    assert whole == count_updates(study.config.training, searched.data)
    assert tuned == round(0.25 * whole)
    for number, row in table.iterrows():
        assert row["updates"] == 2 * (tuned if row["warm"] else whole + tuned)
        assert read_report(searched.run_folder(int(number)))[-1]["num_updates"] == tuned


def test_a_warm_trial_starts_with_what_the_baseline_knows(searched: Searched) -> None:
    warm = searched.table[searched.table["warm"]]
    number = int(warm.index[warm["cost"].argmax()])
    before = validation_loss(
        load_trained(searched.run_folder(0) / "start" / "checkpoint_best.pt"), searched.data.folder
    )
    converted = load_trained(searched.run_folder(number) / "start" / "checkpoint_best.pt")
    plan = json.loads((searched.folder / "trials" / f"{number:05d}" / "plan.json").read_text())
    assert converted.plan.to_json() == plan
    assert abs(validation_loss(converted, searched.data.folder) - before) < 0.1
    assert "--replace" in (searched.folder / "trials" / f"{number:05d}" / "commands.sh").read_text()


def test_what_was_made_before_a_kill_is_not_made_again(searched: Searched) -> None:
    after = searched.logs()
    assert searched.first.items() <= after.items()
    assert {"00000/seed-1", "00000/seed-2", "00001/seed-1"} <= searched.first.keys()
    before = {path: path.stat().st_mtime_ns for path in searched.folder.glob("trials/*/*/*.log")}
    invoke(*searched.arguments)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_report_says_what_was_warm(searched: Searched) -> None:
    summary = (searched.folder / "report" / "summary.md").read_text()
    assert "points started warm: from the trained baseline, converted." in summary
    page = (searched.folder / "report" / "index.html").read_text()
    assert '"warm":true' in page
    data = json.loads((searched.folder / "report" / "front.json").read_text())
    starts = {point["warm"]: point["starts"][0][0] for point in data["front"]}
    assert starts.get(True, "nas-attn") == "nas-attn"
    assert starts.get(False, "fairseq-train") == "fairseq-train"


def test_the_line_that_is_shown_trains_the_same_again(searched: Searched, tmp_path: Path) -> None:
    row = searched.table[searched.table["warm"]].iloc[0]
    folders = sorted(path.parent for path in Path(row["folder"]).glob("seed-*/report.jsonl"))
    environment = os.environ | {"PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}"}
    subprocess.run(row["command"], shell=True, check=True, cwd=tmp_path, env=environment)
    made = tmp_path / "checkpoints" / f"trial-{row.name}-run-1" / "checkpoint_best.pt"
    again = load_trained(made).model.state_dict()
    first = load_trained(folders[0] / "checkpoints" / "checkpoint_best.pt").model.state_dict()
    assert all(first[name].equal(again[name]) for name in first)
    assert shlex.split(row["command"]).count("&&") == 1


def test_where_modules_are_distilled_all_trials_start_warm(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    changes = {
        "space": {"schemes": {"multi_head": {}, "head_embedding_add": {}}, "decide": "site"},
        "search": {"trials": 3, "warm_start": {"source": "baseline", "distil": True}},
    }
    study = str(write(tmp_path, tiny_translation.folder, changes))
    invoke("search", study, "--runs", str(tmp_path / "runs"))
    folder = tmp_path / "runs" / "small"
    table = pd.read_csv(folder / "report" / "trials.csv")
    assert list(table["state"]) == ["complete"] * 3
    assert list(table["warm"]) == [not is_baseline for is_baseline in table["baseline"]]
    assert "trained alone first (distilled)" in (folder / "report" / "summary.md").read_text()
    number = int(table[table["warm"]]["trial"].iloc[0])
    trial = folder / "trials" / f"{number:05d}"
    assert "--distil" in (trial / "commands.sh").read_text()
    assert "distilled: " in (trial / "seed-1" / "start.log").read_text()
    plan = AttentionPlan.parse((trial / "plan.json").read_text())
    baseline = folder / "trials" / "00000" / "seed-1" / "start" / "checkpoint_best.pt"
    again = tmp_path / "again.pt"
    convert_checkpoint(baseline, plan, again, data=tiny_translation.folder, distil=True)
    first, second = (
        load_trained(path).model.state_dict()
        for path in (trial / "seed-1" / "start" / "checkpoint_best.pt", again)
    )
    assert all(first[name].allclose(second[name], atol=1e-4) for name in first)


def test_other_settings_of_the_fine_tuning_are_refused(searched: Searched) -> None:
    with pytest.raises(SearchError, match=r"warm_start\.fraction \(0\.25, now 0\.5\)"):
        invoke(*searched.arguments, "--set", "search.warm_start.fraction=0.5")


def test_where_all_start_from_nothing_trainings_come_first(searched: Searched) -> None:
    warm, cold = (
        load_study(searched.study, overrides=[f"search.warm_start.source={source}"])
        for source in ("baseline", "nothing")
    )
    plan = AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=4))
    start = StartFolders(baseline="runs/baseline")
    first, second = (study.jobs.search_trial(1, plan, start) for study in (warm, cold))
    assert len(first.needs) == len(first.runs) == 2
    assert second.needs == ()
    for run_warm, run_cold in zip(first.runs, second.runs, strict=True):
        assert run_warm.command == run_cold.command, "both end with the same fine-tuning"
        assert run_warm.start is not None
        assert run_cold.start is not None
        assert "convert" in run_warm.start
        assert "convert" not in run_cold.start


@pytest.mark.long
def test_the_baseline_teaches(tmp_path: Path, tiny_translation: PreparedData) -> None:
    """Every trial's fine-tuning, its own too, by a file that commands name; resuming finds all."""
    changes = {
        **CHANGES,
        "training/seeds": [1],
        "search": {
            "trials": 4,
            "sampler": "stratified_random",
            "warm_start": {
                "source": "baseline",
                "fraction": 0.25,
                "teacher": "baseline",
                "arguments": {"teacher-weight": 0.75, "teacher-temperature": 2},
            },
        },
    }
    study = str(write(tmp_path, tiny_translation.folder, changes))
    arguments = ["search", study, "--runs", str(tmp_path / "runs")]
    invoke(*arguments)
    folder = tmp_path / "runs" / "small"
    taught = folder / "trials" / "00000" / "seed-1" / "start" / "checkpoint_best.pt"
    table = pd.read_csv(folder / "report" / "trials.csv").set_index("trial")
    assert list(table["state"]) == ["complete"] * 4
    inherits = ~table["plan"].str.contains("head_embedding_add") & ~table["baseline"]
    assert list(table["warm"]) == list(inherits)
    assert inherits.any() and not inherits[1:].all()
    for number in range(4):
        run = folder / "trials" / f"{number:05d}" / "seed-1"
        words = shlex.split((run.parent / "commands.sh").read_text())
        tuned = words[words.index("--finetune-from-model") - len(words) :]
        assert str(taught) == tuned[tuned.index("--teacher") + 1]
        assert "--criterion=distilled_label_smoothed_cross_entropy" in words
        assert {"--teacher-weight=0.75", "--teacher-temperature=2"} <= set(words)
        assert "teacher_kl" in (run / "train.log").read_text()
        metrics = read_report(run)[-1]["metrics"]
        assert "nll_loss" in metrics and "teacher_kl" not in metrics
    again = shlex.split(table.loc[0, "command"])
    made = "checkpoints/trial-0-run-1/start/checkpoint_best.pt"
    assert again[again.index("--teacher") + 1] == made
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/*/*.log")}
    invoke(*arguments)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.long
def test_rank_agreement(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two more trials; the least number is lowered, as this many would take minutes."""
    monkeypatch.setattr("nas_attn.engine.config.MIN_COMPARED", 3)
    more = ("--set", "search.warm_start.rank_agreement=3", "--trials", "8")
    output = invoke(*searched.arguments, *more)
    assert "are also trained from scratch, for the rank agreement" in output
    report = searched.folder / "report"
    table = pd.read_csv(report / "agreement.csv")
    assert len(table) == 3
    assert table["cost"].is_monotonic_increasing
    trials = pd.read_csv(report / "trials.csv").set_index("trial")
    assert list(table["warm"]) == pytest.approx(list(trials.loc[table["trial"]]["loss"]))
    summary = (report / "summary.md").read_text()
    assert "3 plans were trained both ways." in summary
    assert "Warm start vs. from scratch" in (report / "index.html").read_text()
    logs = {log: log.stat().st_mtime_ns for log in searched.folder.glob("cold/*/*/*.log")}
    assert len(logs) == 2 * 2 * 3
    invoke(*searched.arguments, *more)
    assert logs == {log: log.stat().st_mtime_ns for log in logs}, "nothing is trained twice"
