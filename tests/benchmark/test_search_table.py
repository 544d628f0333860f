"""benchmarks/search_table.py: what it collects of searches."""

from __future__ import annotations

import csv
import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas_attn
from benchmarks.search_table import collect, noise, recorded
from nas_attn.curves import recorded_curves
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionPlan
from tests.helpers.studies import STUDY

SCHEMES = {
    "multi_head": {},
    "collaborative": {"shared_dim": [2, 4]},
    "grouped_head": {"num_groups": [2], "keep": ["pillars"]},
}
"""Votes among them, whose models are smaller than their plans."""


def searched(
    data: PreparedData, runs: Path, training_seed: int, /, **search: Any
) -> nas_attn.Results:
    """A search of the table's study with one seed, of made-up curves."""
    voting = {"criterion": "grouped_label_smoothed_cross_entropy", "vote-at-update": 100}
    arguments = {**STUDY["training"]["arguments"], **voting}
    study = {
        **STUDY,
        "name": "table_demo" if training_seed == 1 else f"table_demo_seed_{training_seed}",
        "data": {"folder": str(data.folder)},
        "training": {"arguments": arguments, "seeds": [training_seed]},
        "space": {"decide": "site", "schemes": SCHEMES},
        "search": {"trials": 5, "sampler": "stratified_random", "seed": 1, **search},
        "replay": {"seconds": 3.0, "validations": 3, "noise": 0.1},
        "execution": {"executor": "simulated", "workers": 2},
    }
    return nas_attn.search(study, runs=runs)


def test_collects_what_is_finished(
    tiny_translation: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "tables"
    with pytest.raises(UsageError, match="holds no run table_demo: train it first"):
        recorded("demo", runs)
    first = searched(tiny_translation, runs, 1)
    searched(tiny_translation, runs, 2, trials=4)
    searched(tiny_translation, runs, 3, trials=3)
    (first.folder / "sensitivity").mkdir()
    changes = "unit,choice,cost,change,change_error\nencoder_self,multi_head,7,0.1234567,0.01\n"
    (first.folder / "sensitivity" / "sensitivity.csv").write_text(changes)
    collect("demo", runs, out)
    assert "5 plans, 3 of them with 3 seeds; 12 trainings" in capsys.readouterr().out
    kept = (out / "demo_predicted.csv").read_text()
    assert kept == "unit,choice,change,change_error\nencoder_self,multi_head,0.12346,0.01\n"

    curves = recorded_curves(out / "demo.csv.gz")
    trials = list(first.read().trained)
    plans = [trial.plan.dumps() for trial in trials if trial.plan is not None]
    wanted = {(plan, 1) for plan in plans} | {(plan, 2) for plan in plans[:4]}
    wanted |= {(plan, 3) for plan in plans[:3]}
    assert list(curves) == sorted(wanted)
    assert [p.num_updates for p in curves[plans[1], 1].points] == [100, 200, 300]
    assert [p.seconds for p in curves[plans[1], 1].points] == [1.0, 2.0, 3.0]

    with (out / "demo_plans.csv").open(newline="") as file:
        rows = {row["plan"]: row for row in csv.DictReader(file)}
    assert list(rows) == sorted(plans)
    for trial in trials:
        row = rows[trial.plan.dumps() if trial.plan else ""]
        assert AttentionPlan.parse(row["plan"]) == trial.plan and row["words"] == str(trial.plan)
        assert int(row["total"]) == trial.costs["total"]
        finals = [c.points[-1].loss for (plan, _), c in curves.items() if plan == row["plan"]]
        assert int(row["seeds"]) == len(finals)
        assert float(row["loss"]) == pytest.approx(finals[0], abs=2e-5)
        assert float(row["mean_loss"]) == pytest.approx(statistics.fmean(finals), abs=2e-5)
    last = curves[plans[1], 1].points[-1].loss
    assert last == round(last, 5) == pytest.approx(trials[1].loss, abs=1e-5)

    noise("demo", runs)
    whole = [[curves[plan, seed].points[-1].loss for seed in (1, 2, 3)] for plan in plans[:3]]
    pooled = math.sqrt(statistics.fmean(map(statistics.variance, whole)))
    # Mean squares of what is left of plans and seeds, with (3 - 1) (3 - 1) degrees of freedom.
    of_plans, of_seeds = np.mean(whole, 1, keepdims=True), np.mean(whole, 0, keepdims=True)
    rest = math.sqrt(np.sum((whole - of_plans - of_seeds + np.mean(whole)) ** 2) / 4)
    text = capsys.readouterr().out
    found = re.search(r"over 3 seeds (\S+); .*without that (\S+)", text)
    assert found is not None
    assert [float(x) for x in found.groups()] == pytest.approx([pooled, rest], abs=1e-4)


def test_says_that_seeds_train_other_plans(
    tiny_translation: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(tiny_translation, tmp_path, 1)
    searched(tiny_translation, tmp_path, 2, seed=7)
    collect("demo", tmp_path, tmp_path / "tables")
    assert "note: seed 2 trains other plans" in capsys.readouterr().out
