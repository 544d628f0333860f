"""A table of made-up trainings: all 27 plans of a space of three sites and three schemes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_attn.attention.counting import count_plan
from nas_attn.benchmark.search.table import plans_of
from nas_attn.curves import Curve, Point, write_curves
from nas_attn.plan import AttentionPlan
from nas_attn.simulation.synthetic import ReplayConfig, synthetic_curve
from nas_attn.study.study import Study
from tests.helpers.studies import STUDY

REST = {"attention": 0, "non_embedding": 500, "total": 2000}
SCHEMES = {"multi_head": {}, "collaborative": {"shared_dim": [4]}, "head_embedding_mul": {}}

MADE_UP: dict[str, Any] = {
    **STUDY,
    "name": "made_up",
    "data": {"folder": "data", "demo": {"train_sentences": 100}},
    "space": {"decide": "site", "schemes": SCHEMES},
}


def table_study(**changes: Any) -> Study:
    """A study that needs no data, as nothing of it is trained."""
    return Study.from_config({**MADE_UP, **changes})


def write_table(
    folder: Path,
    study: Study,
    *,
    seeds: Sequence[int] = (1,),
    without: Sequence[str] = (),
    noise: float = 0.05,
) -> Path:
    """Write made.csv.gz and made_plans.csv.

    Args:
        folder: Folder for them.
        study: Study of the plans.
        seeds: Seeds of the trainings.
        without: Texts of plans that are left out.
        noise: Standard deviation of the losses' noise.
    """
    replay = ReplayConfig(noise=noise, seconds=10.0)
    plans = {k: plan for k, plan in plans_of(study.space).items() if k not in without}
    sizes = {text: size_of(study, plan) for text, plan in plans.items()}
    curves = {
        (text, seed): made_curve(replay, text, sizes[text]["total"], seed)
        for text in plans
        for seed in seeds
    }
    path = folder / "made.csv.gz"
    write_curves(curves, path)
    with (folder / "made_plans.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["plan", "words", *sizes[next(iter(sizes))]])
        writer.writeheader()
        for text, plan in plans.items():
            writer.writerow({"plan": text, "words": str(plan), **sizes[text]})
    return path


def made_curve(replay: ReplayConfig, text: str, total: int, seed: int) -> Curve:
    """A curve with as many digits as a table's."""
    points = synthetic_curve(replay, text, 100 * total, seed).points
    return Curve(tuple(Point(n, round(loss, 5), round(s, 2)) for n, loss, s in points))


def size_of(study: Study, plan: AttentionPlan) -> dict[str, int]:
    """Parameters of a plan in a model whose rest has those of `REST`."""
    counted = count_plan(plan, study.space.shapes)
    sizes = {name: rest + counted.parameters for name, rest in REST.items()}
    return {**sizes, "effective": REST["total"] + counted.effective}
