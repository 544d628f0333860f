"""Objectives, limits, failures and confirmation with real trainings, as a user types them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nas_attn.errors import ConfigError, NasAttnError, SearchError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from tests.helpers.cli import invoke, kill_once
from tests.helpers.studies import write

pytestmark = pytest.mark.slow


class Searched:
    """A study that has been searched, and the commands on it.

    Loss against parameters and decoding time, two seeds a trial, with a limit that the baseline and
    many plans are over.
    """

    def __init__(self, folder: Path, data: PreparedData) -> None:
        changes: dict[str, Any] = {
            "training/seeds": [1, 2],
            "objectives": {
                "costs": ["attention", "decoding_seconds"],
                "limits": {"attention": 2400},
                "decoding_runs": 1,
            },
            "space/decide": "site",
            "search": {"trials": 3, "startup_trials": 2},
        }
        self.study = str(write(folder, data.folder, changes))
        self.data = data.folder
        self.folder = folder / "runs" / "small"
        self.report = self.folder / "report"
        self.output = self.command("search")

    def arguments(self, name: str, *more: str) -> list[str]:
        return [name, self.study, "--runs", str(self.folder.parent), *more]

    def command(self, name: str, *more: str) -> str:
        return invoke(*self.arguments(name, *more))

    def trainings(self) -> dict[str, tuple[int, int]]:
        """What was trained to confirm, and when its log and its report were written last."""
        logs = self.folder.glob("confirm/*/seed-*/train.log")
        return {
            f"{log.parent.parent.name}/{log.parent.name}": (
                log.stat().st_mtime_ns,
                len((log.parent / "report.jsonl").read_text().splitlines()),
            )
            for log in logs
        }


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Searched:
    return Searched(tmp_path_factory.mktemp("searched"), tiny_translation)


def test_two_costs_two_seeds_and_a_limit(searched: Searched) -> None:
    table = pd.read_csv(searched.report / "trials.csv")
    trained = table[table["state"] == "complete"]
    assert len(trained) == 3
    assert trained["baseline"].sum() == 1
    assert (trained[trained["baseline"]]["attention"] > 2400).all()
    assert (trained[~trained["baseline"]]["attention"] <= 2400).all()
    assert (trained["decoding_seconds"] > 0).all()
    assert (trained["seeds"] == 2).all()
    assert list(trained["loss_error"]) == pytest.approx(list(trained["loss_std"] / 2**0.5))
    assert trained["loss_error"].min() > 0
    page = (searched.report / "index.html").read_text()
    assert "decoding seconds per sentence" in page
    assert "standard error per trial" in page
    summary = (searched.report / "summary.md").read_text()
    assert "| decoding seconds per sentence |" in summary
    assert "3 trials of 2 seeds" in summary
    assert ": 3 of 3 finished, " in searched.command("status")


def test_proposals_are_shown_and_derived_again(searched: Searched) -> None:
    lines = searched.command("proposals").splitlines()[1:]
    assert re.match(r" 0 +complete +\S+ +everywhere", lines[0])
    count = len(pd.read_csv(searched.report / "trials.csv"))
    assert f"{count} proposals, all as on record" in searched.command("proposals", "--check")
    with pytest.raises(NasAttnError, match=r"search\.seed \(1, now 2\)"):
        searched.command("proposals", "--check", "--set", "search.seed=2")


def test_a_confirmation_survives_kill_9_and_does_nothing_twice(searched: Searched) -> None:
    arguments = ("confirm", "--trial", "1", "--seeds", "2")
    kill_once(
        lambda: list(searched.folder.glob("confirm/*/seed-*/finished.json")),
        *searched.arguments(*arguments),
    )
    text = searched.command(*arguments)
    assert "trials 0, 1 of the search, each trained again with seeds 3, 4" in text
    before = searched.trainings()
    assert Counter(name.rpartition("/")[2] for name in before) == {"seed-3": 2, "seed-4": 2}
    assert all(validations == 1 for _, validations in before.values())
    for state in searched.folder.glob("confirm/*/seed-*/finished.json"):
        assert list(json.loads(state.read_text())["test"]) == ["bleu"]
        assert list(json.loads(state.read_text())["test_loss"]) == ["nll_loss"]
    rows = pd.read_csv(searched.report / "confirmed.csv")
    assert set(rows["score"]) == {"test bleu", "test nll_loss", "validation nll_loss"}
    assert set(rows["trial"]) == {0, 1}
    losses = rows[rows["score"].str.endswith("nll_loss")].groupby("trial")["mean"]
    assert (losses.max() - losses.min() < 1).all(), "both are bits per token"
    changes = rows[rows["trial"] == 1]
    assert changes["interval"].notna().all()
    assert set(changes["verdict"]) <= {"better", "worse", "noise"}

    assert "2/2 finished" in searched.command(*arguments)
    assert searched.trainings() == before
    # A report that is written later still shows what was confirmed.
    searched.command("report")
    page = (searched.report / "index.html").read_text()
    assert "with 2 seeds that the search did not use" in page


def test_what_cannot_be_confirmed(searched: Searched) -> None:
    with pytest.raises(NasAttnError, match="trial 99 has no result"):
        searched.command("confirm", "--trial", "99")
    gone = searched.data / "test.src-tgt.tgt.idx"
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(NasAttnError, match=r"not the one that .*: the test split \(gone\)"):
        searched.command("confirm", "--trial", "1")
    gone.write_bytes(kept)
    with pytest.raises(SearchError, match=re.escape("training.arguments.lr (0.003, now 0.1)")):
        searched.command("confirm", "--set", "training.arguments.lr=0.1")


def test_bleu_against_cache_and_operations_where_all_but_the_baseline_fails(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """Embeddings so large that no gradient is finite: the search ends, says why, and reports."""
    schemes = {"multi_head": {}, "head_embedding_mul": {"embedding_std": [1e20, 1e25, 1e30]}}
    changes: dict[str, Any] = {
        "objectives": {"metric": "bleu", "costs": ["cache_bytes", "flops"]},
        "training/arguments/max-epoch": 2,
        "space": {"decide": "model", "schemes": schemes},
        "search": {"trials": 4, "give_up_after": 2},
    }
    path = write(tmp_path, tiny_translation.folder, changes)
    arguments = ("search", str(path), "--runs", str(tmp_path / "runs"), "--workers", "1")
    with pytest.raises(SearchError, match=r"2 trials in a row failed \(2 not_finite\)"):
        invoke(*arguments)
    folder = tmp_path / "runs" / "small"
    table = pd.read_csv(folder / "report" / "trials.csv")
    assert list(table["state"]) == ["complete", "fail", "fail"]
    assert list(table["failure"][1:]) == ["not_finite"] * 2
    assert table["reason"][1].endswith("FloatingPointError: gradients are Nan/Inf")

    report = folder / "trials" / "00000" / "seed-1" / "report.jsonl"
    scores = [json.loads(line)["metrics"]["bleu"] for line in report.read_text().splitlines()]
    assert len(scores) == 2
    assert table["loss"][0] == max(scores)
    # Keys and values of one layer of width 16 or of one head, four bytes a number.
    assert list(table["cache_bytes"]) == [2 * 16 * 4, 2 * 4 * 4, 2 * 4 * 4]
    assert table["flops"][1] < table["flops"][0]
    page = (folder / "report" / "index.html").read_text()
    assert "bleu (higher is better)" in page
    assert "effective parameters" not in page  # no count of parameters is weighed


def test_limits_that_leave_nothing(tmp_path: Path, tiny_translation: PreparedData) -> None:
    limits = {"total": 5, "flops": 1e12, "cache_bytes": 7}
    path = write(tmp_path, tiny_translation.folder, {"objectives": {"limits": limits}})
    with pytest.raises(ConfigError, match="2 errors") as refused:
        invoke("search", str(path), "--runs", str(tmp_path / "runs"))
    assert [fault.key for fault in refused.value.faults] == [
        "objectives.limits.total",
        "objectives.limits.cache_bytes",
    ]
    assert "no plan of the space is under 5: the least is " in refused.value.faults[0].message
    assert not (tmp_path / "runs").exists()
    load_study(str(path), overrides=["objectives.limits={attention: 2400}"]).check_limits()
