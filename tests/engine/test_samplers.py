"""Proposals: an even cover of the exact axis, unsorted tables, no repeats."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from nas_attn.engine.samplers import StratifiedSampler
from nas_attn.known_cost.spread import fraction
from nas_attn.plan import AttentionPlan
from tests.helpers.fakes import make_sizer, make_space


def parameters(plan: AttentionPlan) -> int:
    return make_sizer().size(plan).total


def propose(decide: str, count: int, seed: int = 1) -> tuple[StratifiedSampler, list[int]]:
    proposer = StratifiedSampler(make_space(decide), parameters, seed)
    taken: set[str] = set()
    sizes = []
    for index in range(count):
        chosen = proposer.propose(index, taken)
        assert chosen is not None
        plan = proposer.space.plan(chosen)
        assert plan.dumps() not in taken
        taken.add(plan.dumps())
        sizes.append(parameters(plan))
    return proposer, sizes


def test_the_order_of_targets() -> None:
    assert [fraction(index) for index in range(6)] == [0.0, 1.0, 0.5, 0.25, 0.75, 0.125]


@pytest.mark.parametrize(
    ("decide", "count"), [("site", 5), ("site", 9), ("layer", 5), ("layer", 9), ("layer", 17)]
)
def test_any_number_of_proposals_covers_the_axis(decide: str, count: int) -> None:
    """No gap between neighbours is wider than twice the even one; a random sample's is."""
    proposer, sizes = propose(decide, count)
    positions = sorted((size - proposer.low) / (proposer.high - proposer.low) for size in sizes)
    gaps = np.diff([0.0, *positions, 1.0])
    assert gaps.max() <= 2.2 / (count - 1)


def test_the_range_is_exact() -> None:
    space = make_space("site")
    proposer = StratifiedSampler(space, parameters, 1)
    everything = [
        parameters(space.plan([unit.alternatives[i] for unit in space.units]))
        for i in range(len(space.units[0].alternatives))
    ]
    assert (proposer.low, proposer.high) == (min(everything), max(everything))


def test_tables_add_up() -> None:
    space = make_space("layer")
    proposer = StratifiedSampler(space, parameters, 1)
    generator = random.Random(2)
    for _ in range(20):
        picks = [generator.randrange(len(unit.alternatives)) for unit in space.units]
        chosen = [u.alternatives[p] for u, p in zip(space.units, picks, strict=True)]
        added = sum(int(t[p]) for t, p in zip(proposer.tables, picks, strict=True))
        assert proposer.base + added == parameters(space.plan(chosen))


def test_seeds() -> None:
    assert propose("layer", 6, seed=1)[1] == propose("layer", 6, seed=1)[1]
    plans = []
    for seed in (1, 2):
        proposer = StratifiedSampler(make_space("layer"), parameters, seed)
        plans.append(proposer.propose(2, ()))
    assert plans[0] != plans[1]


def test_nothing_left(tmp_path: Path) -> None:
    space = make_space("model")
    proposer = StratifiedSampler(space, parameters, 1)
    taken = {space.plan([alternative]).dumps() for alternative in space.units[0].alternatives}
    assert proposer.propose(0, taken) is None
