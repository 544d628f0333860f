"""Searches over what votes on a trained baseline have left, and the record of these votes."""

from __future__ import annotations

from pathlib import Path

from nas_attn.engine.audit import derive_again
from nas_attn.engine.candidates import FixedCandidates, Proposer
from nas_attn.engine.config import SearchConfig
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.votes import keep_votes, votes_of
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.space import Votes
from tests.helpers.fakes import (
    BASELINE,
    OBJECTIVES,
    FakeCosts,
    FakeExecutor,
    made_votes,
    make_loop,
    make_sizer,
    make_space,
    trained,
)

SCHEMES = {
    "multi_head": {},
    "grouped_head": {"keep": ["threshold"], "vote_threshold": [0.25, 0.5, 0.75, 1.0]},
}
VOTES = made_votes({0.25: "0,1,3", 0.5: "0,3", 0.75: "0,3", 1.0: "0,3"})


def test_a_search_over_settled_plans_knows_their_costs_and_trains_none_twice(
    tmp_path: Path,
) -> None:
    """Three thresholds leave the same heads: of 5^3 proposals there are 3^3 plans."""
    space = make_space("site", SCHEMES).settled(VOTES)
    loop = make_loop(tmp_path, space, trials=40, startup_trials=6)
    FakeExecutor().run(loop)
    loop.outcome()
    trials = loop.store.trials()
    plans = [trial.plan for trial in trained(trials)]
    assert len(plans) == len(set(plans)) == 27
    for trial in trained(trials):
        assert trial.plan is not None
        assert trial.cost_is_exact
        assert "keep" not in trial.plan.dumps()
        assert trial.cost == make_sizer().size(trial.plan).total
        assert not trial.pruned
    proposer = Proposer(space, FakeCosts(), OBJECTIVES, loop.config, BASELINE)
    assert all(derivation.agrees for derivation in derive_again(proposer, trials))


def test_the_first_votes_on_record_stay(tmp_path: Path) -> None:
    """What another host might have held otherwise does not change plans that are trained."""

    def store() -> TrialStore:
        return TrialStore("study", open_storage(None, tmp_path), OBJECTIVES, create=True)

    assert votes_of(store()) == Votes()
    some = Votes(dict(list(VOTES.settled.items())[:3]))
    assert keep_votes(store(), some) == some
    other = AttentionChoice.of("grouped_head", kept_heads=1, heads="2", alpha=0.0, beta=0.0)
    together = keep_votes(store(), Votes({**VOTES.settled, next(iter(some.settled)): other}))
    assert together == votes_of(store()) == VOTES


def test_listed_plans_are_waited_for_and_others_are_not(tmp_path: Path) -> None:
    """A driver that trains the baseline ends, though another goes on with the same study."""
    loop = make_loop(tmp_path, trials=3)
    jobs = [loop.next_job() for _ in range(3)]
    assert all(jobs)
    trials = loop.store.trials()
    fixed = FixedCandidates(
        [BASELINE], make_space(), FakeCosts(), OBJECTIVES, SearchConfig(), BASELINE
    )
    fixed.update(trials, [])
    assert fixed.running == {0, 1, 2}
    assert fixed.awaited == {0}
    fixed.close(trials[0])
    assert fixed.awaited == frozenset()
    assert fixed.propose() is None
    plans: list[AttentionPlan | None] = [trial.plan for trial in trials]
    assert loop.proposer.awaited == {number for number, plan in enumerate(plans) if plan}
