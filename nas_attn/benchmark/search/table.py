"""A table of trainings: every plan of a study's space, with learning curves and exact costs."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas_attn.attention.counting import count_plan, expected_plan
from nas_attn.curves import Curve, recorded_curves
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.plan_costs import expected_costs
from nas_attn.engine.sensitivity import all_changes, words_of
from nas_attn.errors import DataError, UsageError
from nas_attn.fairseq_tools.costs import CostModel
from nas_attn.fairseq_tools.models import Sizer
from nas_attn.measures import ModelSize
from nas_attn.pareto import hypervolume
from nas_attn.plan import AttentionPlan
from nas_attn.space import SearchSpace
from nas_attn.study.study import Study

SIZES = ("attention", "non_embedding", "total", "effective")
WEAK = 0.9
"""The quantile of the table's final losses up to which hypervolume counts."""


@dataclass(frozen=True, kw_only=True)
class SearchTable:
    """All that is known of the plans of a space.

    Args:
        name: Name in what is printed and written.
        path: File of the curves.
        space: The space; no plan beyond it is proposed.
        objectives: What is weighed: a loss and costs, all better when lower.
        baseline: Plan that every search begins with.
        costs: Costs of plans.
        plans: Plans that have a curve of `seed`, by their text.
        curves: Curve of each (plan text, seed).
        seed: Seed of the curves that searches see.
        predicted: By how much single conversions of the trained baseline raise its loss, by the
            digest of the plan; empty if the table does not know it.
        missing: Number of plans of the space without such a curve.
    """

    name: str
    path: Path
    space: SearchSpace
    objectives: Objectives
    baseline: AttentionPlan
    costs: CostModel
    plans: Mapping[str, AttentionPlan]
    curves: Mapping[tuple[str, int], Curve]
    seed: int
    predicted: Mapping[str, float]
    missing: int

    @cached_property
    def digest(self) -> str:
        """Short hash of what searches see, by which results of an earlier table are told apart."""
        seen = [
            (text, self.points[text], self.curves[text, self.seed].points) for text in self.plans
        ]
        return blake2b(repr((seen, self.predicted)).encode(), digest_size=4).hexdigest()

    @cached_property
    def points(self) -> dict[str, tuple[float, ...]]:
        """What a search sees of each plan once it is trained whole: its loss, and its costs.

        Losses of further seeds do not count: only some plans have them, and a seed moves the losses
        of all.
        """
        return {
            text: (best_loss(self.curves[text, self.seed]), *self.cost(plan))
            for text, plan in self.plans.items()
        }

    def cost(self, plan: AttentionPlan) -> tuple[float, ...]:
        """Costs of a plan, in the order of the objectives."""
        costs, _ = expected_costs(self.costs, plan)
        return tuple(float(costs[name]) for name in self.objectives.costs)

    @cached_property
    def reference(self) -> tuple[float, ...]:
        """The point up to which hypervolume counts: a weak loss, and the baseline's costs."""
        losses = sorted(point[0] for point in self.points.values())
        weak = losses[min(len(losses) - 1, math.floor(WEAK * len(losses)))]
        return (weak, *self.cost(self.baseline))

    @cached_property
    def best(self) -> float:
        """Hypervolume of the front of the table."""
        return hypervolume(list(self.points.values()), self.reference)

    @property
    def updates(self) -> int:
        """Updates of one whole training."""
        return self.curves[self.baseline.dumps(), self.seed].points[-1].num_updates

    def indices(self, text: str) -> list[int]:
        """Which alternative of each unit a plan of the table takes."""
        chosen = self.space.encode(self.plans[text])
        assert chosen is not None, "plans of a table are of its space"
        pairs = zip(self.space.units, chosen, strict=True)
        return [unit.alternatives.index(alternative) for unit, alternative in pairs]

    def one_hot(self, text: str) -> NDArray[np.float64]:
        """A plan as a point: a coordinate for each alternative of each unit, one where taken."""
        rows = [np.eye(len(unit.alternatives)) for unit in self.space.units]
        return np.concatenate(
            [eye[index] for eye, index in zip(rows, self.indices(text), strict=True)]
        )


def best_loss(curve: Curve) -> float:
    """The loss of a training: that of its best validation."""
    return min(point.loss for point in curve.points)


def read_table(name: str, path: Path, study: Study, *, allow_missing: bool = False) -> SearchTable:
    """Read a table: the curves, and beside them NAME_plans.csv with the costs.

    Args:
        name: Name in what is printed and written.
        path: File of the curves, `.csv` or `.csv.gz`.
        study: Study whose trainings these are.
        allow_missing: Take a table that lacks plans of the space.

    Raises:
        DataError: a file is malformed, or is no table of this study.
        UsageError: plans of the space have no curve, or the metric is better when higher.
    """
    if study.objectives.maximise:
        raise UsageError(f"{study.objectives.metric} is better when higher; tables hold losses")
    space, seed = study.space, study.config.training.seeds[0]
    curves = recorded_curves(path)
    of_space = plans_of(space)
    plans = {text: plan for text, plan in of_space.items() if (text, seed) in curves}
    strange = sorted({text for text, _ in curves} - of_space.keys())
    if strange:
        raise DataError(f"{path} holds a plan that is none of {study.name}: {strange[0]}")
    if study.baseline.dumps() not in plans:
        raise DataError(f"{path} lacks the baseline with seed {seed}")
    missing = len(of_space) - len(plans)
    if missing and not allow_missing:
        first = next(plan for text, plan in of_space.items() if text not in plans)
        raise UsageError(
            f"{path} lacks {missing} of the {len(of_space)} plans of {study.name}, such as "
            f"{first}; --allow-missing leaves them out of the space"
        )
    return SearchTable(
        name=name,
        path=path,
        space=space,
        objectives=study.objectives,
        baseline=study.baseline,
        costs=_cost_model(path, space),
        plans=plans,
        curves=curves,
        seed=seed,
        predicted=_predicted(path, space, study.baseline),
        missing=missing,
    )


def plans_of(space: SearchSpace) -> dict[str, AttentionPlan]:
    """All plans of a small space, by their text."""
    every = itertools.product(*(unit.alternatives for unit in space.units))
    plans = (space.plan(chosen) for chosen in every)
    return {plan.dumps(): plan for plan in plans if not plan.source_fault()}


def beside(path: Path, ending: str) -> Path:
    """The file of a table beside that of its curves."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ending)


def _predicted(path: Path, space: SearchSpace, baseline: AttentionPlan) -> dict[str, float]:
    """What NAME_predicted.csv says of single conversions.

    Raises:
        DataError: it is malformed.
    """
    file = beside(path, "_predicted.csv")
    if not file.is_file():
        return {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = {(r["unit"], r["choice"]): float(r["change"]) for r in csv.DictReader(lines)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    named = {
        (space.units[unit].name, words_of(space.units[unit].alternatives[number])): plan.digest
        for unit, number, plan in all_changes(space, baseline)
    }
    return {named[key]: change for key, change in rows.items() if key in named}


def _cost_model(path: Path, space: SearchSpace) -> CostModel:
    """Costs by counting, with the rest of the model as the table's rows have it.

    Raises:
        DataError: rows disagree with each other, or with what is counted.
    """
    plans = beside(path, "_plans.csv")
    rests = set()
    try:
        with plans.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                sizes = ModelSize(*(int(row[name]) for name in SIZES))
                plan, _ = expected_plan(AttentionPlan.parse(row["plan"]), space.shapes)
                counted = count_plan(plan, space.shapes)
                if sizes.attention != counted.parameters:
                    raise DataError(f"{plans}: attention parameters of {row['words']} are wrong")
                rest = (sizes.non_embedding, sizes.total, sizes.total)
                rests.add(tuple(count - sizes.attention for count in rest))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{plans} cannot be read: {error}") from None
    if len(rests) != 1:
        raise DataError(f"{plans}: rows are of different models")
    return CostModel(Sizer(space.shapes, ModelSize(0, *rests.pop())), 0, {}, None, 4)
