"""A search whose points start from larger ones, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nas_attn.errors import SearchError
from nas_attn.fairseq_tools.convert import load_trained, validation_loss
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import SITES
from tests.helpers.cli import COMMAND, invoke
from tests.helpers.studies import write

pytestmark = pytest.mark.slow

CHANGES: dict[str, Any] = {
    "training/arguments/max-epoch": 6,
    "training/arguments/lr": 0.01,
    "space": {"schemes": {"multi_head": {}, "reduced_key": {"key_dim": [4, 8, 12]}}},
    "search": {
        "trials": 7,
        "strategy": "sensitivity",
        "warm_start": {"source": "baseline", "fraction": "auto", "ladder": True},
    },
}
BEST = "checkpoint_best.pt"


class Searched:
    """A search on a ladder."""

    def __init__(self, folder: Path, data: PreparedData) -> None:
        self.data = data
        study = str(write(folder, data.folder, CHANGES))
        self.folder = folder / "runs" / "small"
        self.arguments = [study, "--runs", str(self.folder.parent)]
        self.output = invoke("search", *self.arguments)
        self.table = pd.read_csv(self.folder / "report" / "trials.csv").set_index("trial")

    def run_folder(self, trial: int) -> Path:
        return self.folder / "trials" / f"{trial:05d}" / "seed-1"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Searched:
    """Whatever so small a model's predictions are worth, they are followed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas_attn.rank_agreement.LEAST_OVERALL", -1.0)
        patch.setattr("nas_attn.rank_agreement.LEAST_WITHIN", -1.0)
        return Searched(tmp_path_factory.mktemp("ladder"), tiny_translation)


def test_each_point_starts_from_its_parent(searched: Searched) -> None:
    table = searched.table
    assert list(table["state"]) == ["complete"] * len(table)
    points = table.iloc[1:]
    assert len(points) >= 4
    assert points["warm"].all()
    assert table["parent"].isna()[0]
    assert (points["parent"] > 0).sum() >= 2, "some start from other points"
    for number, row in points.iterrows():
        parent = int(row["parent"])
        assert parent < int(str(number))
        assert row["cost"] < table["cost"][parent]
        kept = "checkpoints" if parent else "start"
        start = searched.run_folder(parent) / kept / BEST
        commands = (searched.folder / "trials" / f"{number:05d}" / "commands.sh").read_text()
        assert f"nas-attn convert {start} --plan " in commands
        before = table["chain_updates"].get(parent) if parent else 0
        assert row["chain_updates"] == row["updates"] + before


def test_what_is_predicted_to_lose_more_is_fine_tuned_for_longer(searched: Searched) -> None:
    """A tenth of the training and up to a second one, by the predictions that the search kept."""
    least = int(searched.table["updates"][0] - searched.table["updates"][0] / 1.1)
    points = searched.table.iloc[1:].sort_values("cost")
    updates = list(points["updates"])
    assert updates[0] == pytest.approx(2 * least, abs=1)
    assert updates == sorted(updates, reverse=True)
    assert updates[-1] >= least
    predicted = pd.read_csv(searched.folder / "sensitivity" / "predicted.csv").set_index("cost")
    most = predicted["predicted"].max()
    for _, row in points.iterrows():
        share = predicted["predicted"][row["cost"]] / most
        assert row["updates"] == pytest.approx(least * (1 + max(0, share)), abs=1)
    summary = (searched.folder / "report" / "summary.md").read_text()
    assert f"with {least} to {2 * least} updates of fine-tuning, the more of them" in summary


def test_a_child_starts_with_what_its_parent_knows(searched: Searched) -> None:
    points = searched.table[searched.table["parent"] > 0]
    number = int(points.index[0])
    parent = load_trained(searched.run_folder(int(points["parent"].iloc[0])) / "checkpoints" / BEST)
    child = load_trained(searched.run_folder(number) / "start" / BEST)
    assert child.plan != parent.plan
    kept = 0
    before, after = parent.model.state_dict(), child.model.state_dict()
    places = {
        "encoder_self": "encoder.layers.0.self_attn.",
        "decoder_self": "decoder.layers.0.self_attn.",
        "encoder_decoder": "decoder.layers.0.encoder_attn.",
    }
    for site in SITES:
        names = [name for name in before if name.startswith(places[site])]
        assert names
        if child.plan.layers(site, 1) == parent.plan.layers(site, 1):
            kept += 1
            assert all(before[name].equal(after[name]) for name in names), site
    others = [name for name in before if "attn." not in name]
    assert others
    assert all(before[name].equal(after[name]) for name in others)
    data = searched.data.folder
    assert abs(validation_loss(child, data) - validation_loss(parent, data)) < 0.3


def test_the_line_that_is_shown_trains_the_same_again(searched: Searched, tmp_path: Path) -> None:
    row = searched.table[searched.table["parent"] > 0].iloc[-1]
    environment = os.environ | {"PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}"}
    subprocess.run(row["command"], shell=True, check=True, cwd=tmp_path, env=environment)
    made = tmp_path / "checkpoints" / f"trial-{row.name}-run-1" / BEST
    again = load_trained(made).model.state_dict()
    first = searched.run_folder(int(str(row.name))) / "checkpoints" / BEST
    kept = load_trained(first).model.state_dict()
    assert all(kept[name].equal(again[name]) for name in kept)


def test_the_report_says_what_started_from_what(searched: Searched) -> None:
    report = searched.folder / "report"
    summary = (report / "summary.md").read_text()
    assert "or from the larger trial that is named, converted after its fine-tuning" in summary
    front = json.loads((report / "front.json").read_text())["front"]
    for point in front:
        row = searched.table.loc[point["trial"]]
        assert (point["parent"] is None) == row["baseline"]
        if point["parent"] is not None:
            assert point["parent"] == row["parent"]
            assert point["chain_updates"] == row["chain_updates"]
            assert f"(warm from {point['parent']})" in summary


def test_proposals_follow_from_the_record_and_nothing_is_done_again(searched: Searched) -> None:
    table = searched.table
    output = invoke("proposals", *searched.arguments, "--check")
    assert f"{len(table)} proposals, all as on record" in output
    before = {path: path.stat().st_mtime_ns for path in searched.folder.glob("trials/*/*/*.log")}
    invoke("search", *searched.arguments)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(SearchError, match=r"warm_start\.ladder \(True, now None\)"):
        invoke("search", *searched.arguments, "--set", "search.warm_start.ladder=false")
