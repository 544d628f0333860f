"""Predict every plan's loss from conversions of one unit at a time, and check that they add up.

One conversion of one module changes the loss a little, and such changes nearly add up. So the best
plan at every size is a knapsack, which is solved exactly (`nas_attn.knapsack`). Whether
it is so for a model is seen by measuring plans that change everything at once.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nas_attn.knapsack import Item, solve
from nas_attn.measures import NO_LIMITS
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.rank_agreement import LEAST_COUNT, RankAgreement, rank_agreement
from nas_attn.space import Option, SearchSpace
from nas_attn.space.space import Unit

LOSS_UNIT = 1e-6
"""Bits a token in which losses are counted as whole numbers."""
DRIFT = 0.05
"""Median distance of measured over predicted from 1 above which predictions are corrected."""

EPSILON = 1e-6
UNLIMITED = 2**62

Costs = Callable[[AttentionPlan], Mapping[str, float]]


@dataclass(frozen=True)
class Measured:
    """What a conversion did to the loss.

    Args:
        change: Change of the loss in bits per token.
        error: Standard error of the change.
    """

    change: float
    error: float


@dataclass(frozen=True)
class UnitChange:
    """One unit of a model with another choice than the baseline's.

    Args:
        unit: Name of the unit, such as decoder_self.2.
        choice: Choice in words.
        plan: The baseline with that change.
    """

    unit: str
    choice: str
    plan: AttentionPlan


@dataclass(frozen=True)
class Entry:
    """What a unit may choose.

    Args:
        option: The choice as the solver has it.
        measured: What it does to the loss.
        is_change: Whether it is other than the baseline's.
    """

    option: Item
    measured: Measured
    is_change: bool


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A plan that no other is predicted to dominate.

    Args:
        plan: Plan of the whole model.
        cost: Exact cost on the axis.
        change: Predicted change of the loss in bits per token, a sum.
        error: Standard error of that, those of its terms taken as independent.
        others: Further costs, exact as well.
    """

    plan: AttentionPlan
    cost: int
    change: float
    error: float
    others: tuple[int, ...] = ()


def single_changes(
    space: SearchSpace, baseline: AttentionPlan, inherits: Callable[[AttentionPlan], bool]
) -> list[UnitChange]:
    """Every single change that the space offers and a conversion can make.

    Args:
        space: Space of the plans.
        baseline: Plan that is changed.
        inherits: Whether a plan can take over what the baseline has learned.
    """
    found = []
    for unit, alternative, plan in all_changes(space, baseline):
        if plan != baseline and not plan.source_fault() and inherits(plan):
            texts = words_of(space.units[unit].alternatives[alternative])
            found.append(UnitChange(space.units[unit].name, texts, plan))
    return found


def words_of(alternative: Option) -> str:
    """What a unit may choose, as tables write it."""
    return ", ".join(dict.fromkeys(str(choice) for _, choice in alternative.choices))


def all_changes(
    space: SearchSpace, baseline: AttentionPlan
) -> Iterator[tuple[int, int, AttentionPlan]]:
    """The number of each unit and of each of its alternatives, and the baseline with that one."""
    for number, unit in enumerate(space.units):
        for place, alternative in enumerate(unit.alternatives):
            yield number, place, _changed(space, baseline, unit, alternative)


def _changed(
    space: SearchSpace, baseline: AttentionPlan, unit: Unit, alternative: Option
) -> AttentionPlan:
    layers: dict[str, list[AttentionChoice]] = {
        site: list(baseline.layers(site, shape.num_layers)) for site, shape in space.shapes.items()
    }
    for site, _ in alternative.choices:
        count = space.count_layers(unit, site)
        start = unit.layer or 0
        layers[site][start : start + count] = alternative.at(site, count)
    return AttentionPlan.of(layers)


class AdditiveModel:
    """What single changes predict for whole plans.

    Args:
        space: Space of the plans.
        baseline: The plan that was changed.
        costs: Exact costs of a plan; those of units add up.
        axis: Name of the cost on the axis.
        tie: Name of the cost that decides among equals; None if there is none.
        measured: Measurement of each single change; what lacks is not chosen.
        others: Names of further costs, which may have limits; those of units add up as well.
    """

    def __init__(
        self,
        space: SearchSpace,
        baseline: AttentionPlan,
        costs: Costs,
        axis: str,
        tie: str | None,
        measured: Mapping[AttentionPlan, Measured],
        others: Sequence[str] = (),
    ) -> None:
        self.space = space
        self.baseline = baseline
        self.changes = measured
        self.others = tuple(others)
        base = costs(baseline)
        self.base_cost = int(base[axis])
        self._base_others = tuple(int(base[name]) for name in self.others)
        # For each unit what it may choose, by the number of the alternative.
        self.tables: list[dict[int, Entry]] = [{} for _ in space.units]
        for unit, alternative, plan in all_changes(space, baseline):
            found = Measured(0.0, 0.0) if plan == baseline else measured.get(plan)
            if found is None:
                continue
            known = costs(plan)
            option = Item(
                cost=int(known[axis] - base[axis]),
                loss=round(found.change / LOSS_UNIT),
                tie=0 if tie is None else int(known[tie] - base[tie]),
                others=tuple(int(known[name] - base[name]) for name in self.others),
            )
            self.tables[unit][alternative] = Entry(option, found, plan != baseline)

    def predict(self, plan: AttentionPlan) -> Measured | None:
        """The sum of a plan's single changes; None if the space or a measurement lacks one."""
        picked = self.chosen(plan)
        if picked is None:
            return None
        return _total([table[a].measured for table, a in zip(self.tables, picked, strict=True)])

    def chosen(self, plan: AttentionPlan) -> list[int] | None:
        """The numbers of the alternatives of a plan; None if the space or a measurement lacks
        one."""
        chosen = self.space.encode(plan)
        if chosen is None:
            return None
        pairs = zip(self.space.units, chosen, strict=True)
        picked = [unit.alternatives.index(alternative) for unit, alternative in pairs]
        known = all(a in table for table, a in zip(self.tables, picked, strict=True))
        return picked if known else None

    def prediction(self, picked: Sequence[int]) -> Prediction:
        """What is predicted of the plan of some alternatives."""
        entries = [table[a] for table, a in zip(self.tables, picked, strict=True)]
        total = _total([entry.measured for entry in entries])
        return Prediction(
            plan=self._plan(picked),
            cost=self.base_cost + sum(entry.option.cost for entry in entries),
            change=total.change,
            error=total.error,
            others=tuple(
                base + sum(entry.option.others[number] for entry in entries)
                for number, base in enumerate(self._base_others)
            ),
        )

    def parts(self, plan: AttentionPlan) -> list[AttentionPlan]:
        """The single changes that a plan of the space consists of."""
        chosen = self.space.encode(plan) or ()
        parts = [
            _changed(self.space, self.baseline, unit, alternative)
            for unit, alternative in zip(self.space.units, chosen, strict=True)
        ]
        return [part for part in parts if part != self.baseline]

    def random_plans(self, count: int, seed: int) -> list[AttentionPlan]:
        """Plans with any measured choice in every unit, each as likely; the same for a seed."""
        generator = random.Random(seed)
        plans: dict[AttentionPlan, None] = {}
        for _ in range(20 * count):
            if len(plans) == count or not all(self.tables):
                break
            picked = [generator.choice(sorted(table)) for table in self.tables]
            plan = self._plan(picked)
            if plan.source_fault() is None:
                plans[plan] = None
        return list(plans)

    def _plan(self, picked: Sequence[int]) -> AttentionPlan:
        pairs = zip(self.space.units, picked, strict=True)
        return self.space.plan([unit.alternatives[place] for unit, place in pairs])

    def front(
        self,
        *,
        max_schemes: int | None = None,
        keep_first_layer: bool = False,
        limits: Mapping[str, float] = NO_LIMITS,
    ) -> list[Prediction]:
        """The plans that no other is predicted to dominate, from small to large.

        Args:
            max_schemes: Number of schemes that a plan may have; any number if None.
            keep_first_layer: The first layer of each site stays as it is; only where the space
                decides layer by layer.
            limits: The most that plans may cost, by the names of some of the further costs; those
                within are equal in these.

        Raises:
            SearchError: Further costs have too many sums to choose among.
        """
        return undominated(self._within(max_schemes, keep_first_layer, limits, surface=False))

    def surface(
        self,
        *,
        max_schemes: int | None = None,
        keep_first_layer: bool = False,
        limits: Mapping[str, float] = NO_LIMITS,
    ) -> list[Prediction]:
        """The plans that none is predicted to dominate in the axis, the first further cost and the
        loss, by rising cost; for arguments and errors see `front`."""
        found = self._within(max_schemes, keep_first_layer, limits, surface=True)
        points = [(p.cost, p.others[0], p.change) for p in found]
        return [found[index] for index in non_dominated(points)] if max_schemes else found

    def _within(
        self,
        max_schemes: int | None,
        keep_first_layer: bool,
        limits: Mapping[str, float],
        *,
        surface: bool,
    ) -> list[Prediction]:
        allowed: list[list[int]] = []
        for unit, table in zip(self.space.units, self.tables, strict=True):
            is_kept = keep_first_layer and unit.layer == 0
            allowed.append([a for a, e in table.items() if not (is_kept and e.is_change)])
        if max_schemes is None:
            return self._solve(allowed, limits, surface=surface)
        schemes = sorted({s for unit in self.space.units for s in _schemes(unit)})
        found = []
        for some in itertools.combinations(schemes, min(max_schemes, len(schemes))):
            within = [
                [a for a in places if _scheme(unit, a) in some]
                for unit, places in zip(self.space.units, allowed, strict=True)
            ]
            found += self._solve(within, limits, surface=surface)
        return found

    def _solve(
        self, allowed: Sequence[Sequence[int]], limits: Mapping[str, float], *, surface: bool
    ) -> list[Prediction]:
        if not all(allowed):
            return []
        options = [
            [table[a].option for a in places]
            for table, places in zip(self.tables, allowed, strict=True)
        ]
        most = [
            math.floor(limits[name] - base) if name in limits else UNLIMITED
            for name, base in zip(self.others, self._base_others, strict=True)
        ]
        blind = [
            [int(unit.alternatives[a].is_blind) for a in places]
            for unit, places in zip(self.space.units, allowed, strict=True)
        ]
        if any(map(any, blind)):
            # One layer at least must see the source: a further cost, with a limit.
            most.append(self.space.shapes["encoder_decoder"].num_layers - 1)
            options = [
                [replace(o, others=(*o.others, n)) for o, n in zip(some, counts, strict=True)]
                for some, counts in zip(options, blind, strict=True)
            ]
        return [
            self.prediction([places[o] for places, o in zip(allowed, solution.chosen, strict=True)])
            for solution in solve(options, most, surface=surface)
        ]


@dataclass(frozen=True, kw_only=True)
class PredictionCheck:
    """A plan whose loss was predicted and measured.

    Args:
        plan: Plan that changes many units at once.
        cost: Cost on the axis.
        kind: Random, or predicted to be on the front.
        predicted: Change of the loss.
        measured: Change of the loss.
        error: Standard error of what was measured.
    """

    plan: AttentionPlan
    cost: int
    kind: str
    predicted: float
    measured: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Validity:
    """How far predictions are right.

    Args:
        ranks: Agreement of the ranks of predicted and measured changes.
        ratio: Median of measured over predicted, and its quartiles; of changes that are clear.
        scale: Factor s in measured = s predicted + c predicted^2, which corrects predictions and
            keeps their order; 1 where they drift too little to matter.
        bend: Factor c in the same, at least 0, as strong changes may cost more than their sum.
        left: Median distance of measured over corrected from 1, each check corrected by what the
            others say; None where nothing is corrected.
    """

    ranks: RankAgreement
    ratio: tuple[float, float, float]
    scale: float = 1.0
    bend: float = 0.0
    left: float | None = None

    def corrected(self, change: float) -> float:
        """What is to be expected where a change is predicted."""
        return self.scale * change + self.bend * max(0.0, change) ** 2


def validity_of(checks: Sequence[PredictionCheck]) -> Validity:
    """Compare predictions with measurements; six at least."""
    costs, predicted, measured = zip(
        *((check.cost, check.predicted, check.measured) for check in checks), strict=True
    )
    ranks = rank_agreement(costs, predicted, measured)
    # What is within two standard errors of no change says nothing about a ratio.
    clear = [check for check in checks if check.predicted > max(0.0, 2 * check.error)]
    if len(clear) < LEAST_COUNT:
        return Validity(ranks=ranks, ratio=(math.nan,) * 3)
    points = np.array([check.predicted for check in clear])
    ratios = np.array([check.measured for check in clear]) / points
    low, median, high = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    ratio = (median, low, high)
    if float(np.median(np.abs(ratios - 1))) <= DRIFT:
        return Validity(ranks=ranks, ratio=ratio)
    scale, bend = straight_line(points, ratios)
    left = []
    for index, (point, known) in enumerate(zip(points, ratios, strict=True)):
        s, c = straight_line(np.delete(points, index), np.delete(ratios, index))
        left.append(abs(known / (s + c * point) - 1))
    return Validity(
        ranks=ranks, ratio=ratio, scale=scale, bend=bend, left=float(statistics.median(left))
    )


def straight_line(points: np.ndarray, ratios: np.ndarray) -> tuple[float, float]:
    """The line of ratios over points p, s + c p with s > 0 and c >= 0: least squares."""
    bend, scale = np.polyfit(points, ratios, 1)
    if bend < 0 or scale <= 0:
        return max(float(ratios.mean()), EPSILON), 0.0
    return float(scale), float(bend)


def undominated(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Those that no other is predicted to dominate, by rising cost."""
    best: list[Prediction] = []
    for prediction in sorted(predictions, key=lambda p: (p.cost, p.change)):
        if not best or prediction.change < best[-1].change:
            best.append(prediction)
    return best


def spread_predictions(front: Sequence[Prediction], count: int) -> list[Prediction]:
    """So many points of a predicted front, spread evenly over the exact axis, ends included."""
    if len(front) <= count:
        return list(front)
    low, high = front[0].cost, front[-1].cost
    chosen: dict[int, None] = {}
    for place in range(count):
        wanted = low + (high - low) * place / max(1, count - 1)
        nearest = min(range(len(front)), key=lambda i: abs(front[i].cost - wanted))
        chosen[nearest] = None
    return [front[i] for i in sorted(chosen)]


def largest_steps(
    front: Sequence[Prediction], reached: Sequence[tuple[int, float]], count: int
) -> list[Prediction]:
    """Predicted points where the front is least sure, once some were trained.

    Between two neighbours on the trained front lies a rectangle that a further point could win at
    most: what they differ in cost times what they differ in loss. The largest are halved, one after
    the other, each by the predicted point whose cost is nearest to its middle.

    Args:
        front: Predicted front.
        reached: Cost and loss of the points that were trained.
        count: Number of points that are wanted.
    """
    best = [reached[index] for index in non_dominated(reached)]
    steps = [
        (left_cost, right_cost, left_loss - right_loss)
        for (left_cost, left_loss), (right_cost, right_loss) in itertools.pairwise(sorted(best))
    ]
    trained = {cost for cost, _ in reached}
    chosen: list[Prediction] = []
    while steps and len(chosen) < count:
        low, high, height = steps.pop(_largest(steps))
        inside = [p for p in front if low < p.cost < high and p.cost not in trained]
        if not inside:
            continue
        middle = min(inside, key=lambda p: abs(p.cost - (low + high) / 2))
        chosen.append(middle)
        trained.add(middle.cost)
        steps += [(low, middle.cost, height / 2), (middle.cost, high, height / 2)]
    return sorted(chosen, key=lambda p: p.cost)


def _largest(steps: Sequence[tuple[int, int, float]]) -> int:
    """The place of the rectangle (low, high, height) with the largest area."""
    return max(range(len(steps)), key=lambda i: (steps[i][1] - steps[i][0]) * steps[i][2])


def _total(terms: Sequence[Measured]) -> Measured:
    change = math.fsum(term.change for term in terms)
    return Measured(change, math.sqrt(math.fsum(term.error**2 for term in terms)))


def _scheme(unit: Unit, alternative: int) -> str:
    return unit.alternatives[alternative].choices[0][1].scheme


def _schemes(unit: Unit) -> set[str]:
    return {_scheme(unit, alternative) for alternative in range(len(unit.alternatives))}
