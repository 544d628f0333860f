"""Points of a queue start from larger ones: parents, order, waiting, failures, drivers, kills."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_attn.analysis.front import front_table, trials_table
from nas_attn.conversion.nesting import plan_nests
from nas_attn.engine.audit import derive_again
from nas_attn.engine.candidates import Proposer
from nas_attn.engine.ladder import ancestors_of, chain_updates, parents_of
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.report.formatting import mark_text
from nas_attn.trials.job import StartFolders, TrialJob, TrialResult
from tests.helpers.fakes import (
    BASELINE,
    SHAPES,
    FakeExecutor,
    kill_drivers,
    loss_of,
    make_loop,
    make_sizer,
)

of = AttentionChoice.of
SITES = tuple(SHAPES)


def shared(shared_dim: int, num_value_heads: int = 4) -> AttentionPlan:
    choice = of("collaborative", shared_dim=shared_dim, num_value_heads=num_value_heads)
    return AttentionPlan.uniform(choice, SITES)


QUEUE = [
    shared(32),
    AttentionPlan.uniform(of("grouped_query", num_groups=2), SITES),
    shared(16),
    AttentionPlan.uniform(of("multi_query"), SITES),
    shared(16, 1),
    shared(8, 1),
]
"""From large to small: shared dimensions are one branch, keys and values of groups another."""
PARENTS = [BASELINE, BASELINE, QUEUE[0], QUEUE[1], QUEUE[3], QUEUE[4]]
"""What each starts from. The last but one could start from either branch: the smaller is taken."""


def cost(plan: AttentionPlan) -> float:
    return make_sizer().size(plan).total


def nests(narrow: AttentionPlan, wide: AttentionPlan) -> bool:
    return plan_nests(narrow, wide, SHAPES)


def test_parents_follow_from_the_queue() -> None:
    assert [cost(plan) for plan in QUEUE] == sorted(map(cost, QUEUE), reverse=True)
    parents = parents_of(QUEUE, BASELINE, cost, nests)
    assert list(parents.items()) == list(zip(QUEUE, PARENTS, strict=True))
    assert list(ancestors_of(QUEUE[5], parents)) == [QUEUE[4], QUEUE[3], QUEUE[1], BASELINE]
    for plan, parent in parents.items():
        assert nests(plan, parent)
        assert cost(plan) < cost(parent)


def test_a_queue_that_grows_keeps_its_parents() -> None:
    for length in range(len(QUEUE)):
        parents = parents_of(QUEUE[:length], BASELINE, cost, nests)
        assert list(parents.values()) == PARENTS[:length]
    more = [*QUEUE[::2], *QUEUE[1::2]]
    grown = parents_of(more, BASELINE, cost, nests)
    assert grown[QUEUE[4]] == QUEUE[2], "what came later is no parent"
    assert grown[QUEUE[5]] == QUEUE[4]


def test_neither_a_smaller_plan_nor_one_of_the_same_cost_is_a_parent() -> None:
    parents = parents_of(QUEUE[:3], BASELINE, lambda plan: 1.0, nests)
    assert set(parents.values()) == {BASELINE}
    parents = parents_of([QUEUE[5], BASELINE, QUEUE[4]], BASELINE, cost, nests)
    assert parents == {QUEUE[5]: BASELINE, QUEUE[4]: BASELINE}


class Ladder:
    """Loops of a search on a ladder, and the folders that its jobs start from."""

    def __init__(self, folder: Path, queue: Sequence[AttentionPlan] = QUEUE) -> None:
        self.folder, self.queue = folder, queue
        self.starts: dict[int, list[StartFolders]] = {}

    def settings(self) -> dict[str, Any]:
        warm = {"source": "baseline", "ladder": True}
        return {
            "trials": 1 + len(self.queue),
            "strategy": "sensitivity",
            "warm_start": warm,
            "give_up_after": 9,
        }

    def proposer(self, loop: SearchLoop) -> Proposer:
        own = loop.proposer
        return Proposer(own.space, own.costs, own.objectives, own.config, BASELINE, self.queue)

    def driver(self, **more: Any) -> SearchLoop:
        loop = make_loop(self.folder, **self.settings() | more)
        loop.proposer = self.proposer(loop)
        loop._follow()
        build = loop.build_job

        def noting(number: int, plan: AttentionPlan, start: StartFolders) -> TrialJob:
            self.starts.setdefault(number, []).append(start)
            return build(number, plan, start)

        loop.build_job = noting
        return loop

    def check(self, trials: Sequence[TrialRecord], lost: Sequence[AttentionPlan] = ()) -> None:
        """Each trial started from the nearest of its ancestors that did not fail; all of it can be
        derived again."""
        counted = {trial.plan: trial for trial in trials if trial.uses_budget}
        assert counted.keys() == {BASELINE, *self.queue}
        parents = parents_of(self.queue, BASELINE, cost, nests)
        for plan in self.queue:
            trial = counted[plan]
            nearest = next(a for a in ancestors_of(plan, parents) if a not in lost)
            assert trial.parent == counted[nearest].number
            baseline = str(self.folder / f"{counted[BASELINE].number:05d}")
            parent = None if nearest == BASELINE else str(self.folder / f"{trial.parent:05d}")
            assert set(self.starts[trial.number]) == {
                StartFolders(baseline=baseline, parent=parent)
            }
        fresh = self.proposer(make_loop(self.folder / "fresh", **self.settings()))
        derived = list(derive_again(fresh, trials))
        assert len(derived) > len(self.queue)
        assert all(derivation.agrees for derivation in derived)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_starts_from_what(workers: int, tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    loop = ladder.driver()
    FakeExecutor(workers=workers).run(loop)
    trials = loop.store.trials()
    ladder.check(trials)
    assert all(trial.is_trained for trial in trials)
    if workers == 1:
        assert [trial.plan for trial in trials] == [BASELINE, *QUEUE]
    loop.outcome()


def test_the_loop_waits_for_parents_and_is_not_over(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path, QUEUE[:3])
    loop = ladder.driver()

    def end(job: TrialJob | None) -> None:
        assert job is not None
        loop.finish(job.number, TrialResult(losses=(loss_of(job),), seconds=1.0))

    baseline = loop.next_job()
    assert loop.next_job() is None
    end(baseline)
    first, second = loop.next_job(), loop.next_job()
    assert loop.next_job() is None, "the third starts from the first, which runs"
    end(second)
    assert loop.next_job() is None
    assert loop.proposer.propose() is None
    assert not loop.is_over()
    end(first)
    end(loop.next_job())
    assert loop.next_job() is None
    assert loop.is_over()
    ladder.check(loop.store.trials())


@pytest.mark.parametrize("failing", [(3,), (1, 3, 4, 0)])
def test_the_parent_of_one_that_failed_takes_its_place(
    failing: tuple[int, ...], tmp_path: Path
) -> None:
    lost = [QUEUE[place] for place in failing]
    texts = [plan.dumps() for plan in lost]
    ladder = Ladder(tmp_path)
    loop = ladder.driver()
    FakeExecutor(error=lambda job: "no" if job.runs[0].command[1] in texts else None).run(loop)
    ladder.check(loop.store.trials(), lost)


def test_several_drivers(tmp_path: Path) -> None:
    """Each hears late of what the others do; one fails."""
    ladder = Ladder(tmp_path)
    drivers = [ladder.driver() for _ in range(3)]
    generator = random.Random(4)
    running: list[tuple[SearchLoop, TrialJob]] = []
    for _ in range(2000):
        if all(driver.is_over() for driver in drivers):
            break
        driver = generator.choice(drivers)
        driver._looked = driver._read_again = 0.0
        if (job := driver.next_job()) is not None:
            running.append((driver, job))
        if running and generator.random() < 0.4:
            ran_by, job = running.pop(generator.randrange(len(running)))
            is_lost = job.runs[0].command[1] == QUEUE[3].dumps()
            losses = () if is_lost else (loss_of(job),)
            ran_by.finish(
                job.number,
                TrialResult(losses=losses, seconds=1.0, error="no" if is_lost else None),
            )
    else:
        pytest.fail("the drivers wait for ever")
    trials = drivers[0].store.trials()
    assert len({trial.driver for trial in trials}) == 3
    ladder.check(trials, [QUEUE[3]])


def test_a_search_that_is_killed_goes_on_with_the_same_parents(tmp_path: Path) -> None:
    whole, broken = Ladder(tmp_path / "whole"), Ladder(tmp_path / "broken")
    loop = whole.driver()
    FakeExecutor(workers=1).run(loop)
    for _ in range(len(QUEUE)):
        with pytest.raises(KeyboardInterrupt):
            FakeExecutor(workers=1, die_after=1).run(broken.driver())
    last = broken.driver()
    FakeExecutor(workers=1).run(last)
    broken.check(last.store.trials())
    parents = [[trial.parent for trial in one.store.trials()] for one in (loop, last)]
    assert parents[0] == parents[1]
    assert max(len(starts) for starts in broken.starts.values()) == 2, "some were continued"


def test_more_points_go_on_from_what_is_there(tmp_path: Path) -> None:
    """As a search does that adds points where the front is least sure."""
    early = Ladder(tmp_path, QUEUE[::2])
    FakeExecutor().run(early.driver())
    kill_drivers()
    late = Ladder(tmp_path, [*QUEUE[::2], *QUEUE[1::2]])
    late.starts |= early.starts
    loop = late.driver()
    FakeExecutor().run(loop)
    late.check(loop.store.trials())


def test_updates_of_a_chain_are_added_up(tmp_path: Path) -> None:
    loop = Ladder(tmp_path).driver()
    executor = FakeExecutor(workers=1)
    executor._train = lambda loop, job: TrialResult(  # type: ignore[method-assign]
        losses=(loss_of(job),), seconds=1.0, updates=1000 if job.number == 0 else 100
    )
    executor.run(loop)
    trials = loop.store.trials()
    assert chain_updates(trials) == dict(enumerate([100, 100, 200, 200, 300, 400], start=1))
    table = trials_table(trials)
    assert list(table.columns[-2:]) == ["parent", "chain_updates"]
    assert list(table["parent"][1:]) == [trial.parent for trial in trials[1:]] == [0, 0, 1, 2, 4, 5]
    assert list(table["chain_updates"][1:]) == [100, 100, 200, 200, 300, 400]
    front = front_table([replace(trial, is_warm=True) for trial in trials], loop.store.objectives)
    assert {mark_text(row) for row in front.to_dict("records")} >= {"warm from 5"}


def test_without_a_ladder_nothing_has_a_parent(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    loop = ladder.driver(warm_start="baseline")
    FakeExecutor(workers=3).run(loop)
    trials = loop.store.trials()
    assert [trial.plan for trial in trials] == [BASELINE, *QUEUE]
    assert {trial.parent for trial in trials} == {None}
    assert {start.parent for starts in ladder.starts.values() for start in starts} == {None}
    assert chain_updates(trials) == {}
    assert "parent" not in trials_table(trials)
