"""The loop: budget, baseline, proposals, interruption, limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas_attn.attention.counting import count_plan
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import front
from nas_attn.engine.wording import Wording
from nas_attn.pareto import dominates
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.report.formatting import state_text
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import StartFolders, TrialJob, TrialResult, Validation
from tests.helpers.fakes import (
    BASELINE,
    SHAPES,
    WARM,
    FakeCosts,
    FakeExecutor,
    kill_drivers,
    make_loop,
    make_sizer,
    make_space,
    trained,
)

LONG = [pytest.mark.slow, pytest.mark.long]
SAMPLERS = [
    "tpe",
    "nsga2",
    pytest.param("gp", marks=LONG),
    "random",
    "stratified_random",
    "known_cost",
]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_whole_search(sampler: str, tmp_path: Path) -> None:
    loop = make_loop(tmp_path, sampler=sampler, trials=15)
    executor = FakeExecutor()
    executor.run(loop)
    trials = loop.store.trials()
    done = trained(trials)
    assert len(done) == len(executor.ran) == 15
    assert len({trial.plan for trial in done}) == 15  # nothing is trained twice
    first = trials[0]
    assert first.is_baseline
    assert str(first.plan) == "everywhere multi_head"
    for trial in done:
        assert trial.plan is not None
        assert trial.cost == 3000 + count_plan(trial.plan, SHAPES).parameters
        assert trial.commands[0][:2] == ("fairseq-train", trial.plan.dumps())
    points = {t.number: (t.cost, t.loss) for t in done}
    on_front = {t.number for t in front(trials)}
    for number, point in points.items():
        beaten = any(dominates(other, point) for other in points.values())
        assert (number in on_front) != beaten
    assert loop.outcome().finished == 15


def test_the_baseline_comes_first_even_if_the_space_lacks_it(tmp_path: Path) -> None:
    space = make_space(schemes={"collaborative": {"shared_dim": [2, 4, 8, 16]}})
    loop = make_loop(tmp_path, space, trials=6)
    FakeExecutor().run(loop)
    trials = loop.store.trials()
    assert [t.is_baseline for t in trials] == [True] + [False] * 5
    assert all("multi_head" not in str(trial.plan) for trial in trials[1:])


def test_what_pruning_left_is_the_objective(tmp_path: Path) -> None:
    """Known before training where the rule says so; else only afterwards, a mean over seeds."""
    schemes = {
        "multi_head": {},
        "grouped_head": {
            "keep": ["pillars", "threshold"],
            "num_groups": [2, 3],
            "vote_threshold": [0.5],
        },
    }
    left = AttentionChoice.of("grouped_head", kept_heads=1)
    more = AttentionChoice.of("grouped_head", kept_heads=3)

    def prune(plan: AttentionPlan) -> tuple[AttentionPlan, ...]:
        sites = dict(plan)
        if sites["encoder_self"][0].scheme != "grouped_head":
            return ()
        return tuple(AttentionPlan.uniform(choice) for choice in (left, more))

    space = make_space(schemes=schemes, decide="model")
    loop = make_loop(tmp_path, space, trials=5, sampler="stratified_random")
    planned = {}
    FakeExecutor(prune=lambda plan: planned.setdefault(plan, prune(plan))).run(loop)
    sizer = make_sizer()
    wanted = (
        sizer.size(AttentionPlan.uniform(left)).total
        + sizer.size(AttentionPlan.uniform(more)).total
    ) / 2
    trials = loop.store.trials()
    assert len(trials) == 5
    for trial in trials:
        assert trial.plan is not None
        if trial.is_baseline:
            assert trial.cost_is_exact
            assert trial.pruned == ()
            continue
        assert trial.cost_is_exact == ("pillars" in str(trial.plan))
        assert trial.cost == wanted
        assert trial.text.endswith(
            "; left (first seed): encoder_self 1 heads, decoder_self 1 heads, "
            "encoder_decoder 1 heads"
        )
    points = front(trials)
    assert points[0].cost == wanted


@pytest.mark.parametrize("die_after", [0, 1, 4, 9])
def test_an_interrupted_search_goes_on(die_after: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        FakeExecutor(die_after=die_after).run(make_loop(tmp_path))
    again = make_loop(tmp_path)
    left = {t.number for t in again.store.trials() if t.state == TrialState.RUNNING}
    assert len(left) == 2
    executor = FakeExecutor()
    executor.run(again)
    trials = again.store.trials()
    assert left <= set(executor.ran)
    kill_drivers()
    assert len(executor.ran) == 12 - die_after  # what was finished did not run again
    assert [t.state for t in trials if t.uses_budget] == [TrialState.COMPLETE] * 12
    assert len(trained(trials)) == 12
    third = make_loop(tmp_path)
    assert third.next_job() is None


def test_more_trials_extend_a_finished_search(tmp_path: Path) -> None:
    FakeExecutor().run(make_loop(tmp_path, trials=5))
    executor = FakeExecutor()
    loop = make_loop(tmp_path, trials=9)
    executor.run(loop)
    assert len(executor.ran) == 4
    assert len(trained(loop.store.trials())) == 9


@pytest.mark.parametrize("sampler", ["tpe", "stratified_random"])
def test_a_small_space_ends_when_it_is_empty(sampler: str, tmp_path: Path) -> None:
    space = make_space("model")
    loop = make_loop(tmp_path, space, trials=50, sampler=sampler)
    executor = FakeExecutor()
    executor.run(loop)
    assert len(executor.ran) == space.size == 11
    for trial in loop.store.trials():
        if trial.duplicate_of is not None and trial.is_complete:
            original = loop.store.trials()[trial.duplicate_of]
            assert (trial.loss, trial.cost) == (original.loss, original.cost)


def test_the_same_seed_proposes_the_same(tmp_path: Path) -> None:
    plans = []
    for name in "ab":
        loop = make_loop(tmp_path / name, seed=5)
        FakeExecutor(workers=1).run(loop)
        plans.append([trial.plan for trial in loop.store.trials()])
    assert plans[0] == plans[1]


def test_warm_trials_wait_for_the_baseline(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=4, **WARM)
    baselines: list[str | None] = []
    original = loop.build_job

    def build(number: int, plan: AttentionPlan, start: StartFolders) -> TrialJob:
        baselines.append(start.baseline)
        return original(number, plan, start)

    loop.build_job = build
    first = loop.next_job()
    assert first is not None
    assert loop.next_job() is None
    assert not loop.is_over()
    loop.progress(first.number, Validation(seed=1, num_updates=70, loss=9.0, is_start=True))
    assert loop.store.refresh(first.number).curve == {}, "a start is not the trial's curve"
    loop.finish(first.number, TrialResult(losses=(0.5,), seconds=1.0, updates=80))
    assert loop.store.trials()[0].updates == 80
    assert loop.next_job() is not None
    assert loop.next_job() is not None
    assert baselines == [None, first.folder, first.folder]


def test_cold_trials_wait_for_nobody(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=4, warm_start={"source": "nothing"})
    assert loop.next_job() is not None
    assert loop.next_job() is not None


def test_limits_are_kept(tmp_path: Path) -> None:
    limits = {"total": 80_000}
    objectives = Objectives(metric="loss", maximise=False, costs=("total",), limits=limits)
    loop = make_loop(tmp_path, objectives=objectives, trials=14)
    FakeExecutor().run(loop)
    trials = loop.store.trials()
    done = trained(trials)
    assert len(done) == 14
    assert all(t.cost is not None and (t.cost <= 80_000 or t.is_baseline) for t in done)
    refused = [trial for trial in trials if trial.is_infeasible]
    assert all("more than the limit of 80,000" in (trial.reason or "") for trial in refused)
    starts = sorted(t.cost or 0 for t in trials[1:6])
    assert starts[0] < 55_000
    assert starts[-1] > 75_000, "the start covers what is allowed, to its end"


GROUPED: dict[str, object] = {
    "grouped_head": {"keep": ["threshold"], "num_groups": [1, 2], "vote_threshold": [0.0, 0.5]}
}


def test_a_limit_is_judged_by_what_is_left(tmp_path: Path) -> None:
    """Plans that pruning can bring under it are trained; those over it after all say so."""
    whole = make_sizer().size(BASELINE).total
    objectives = Objectives(
        metric="loss", maximise=False, costs=("total",), limits={"total": whole - 10_000}
    )
    space = make_space("site", GROUPED)

    def prune(plan: AttentionPlan) -> tuple[AttentionPlan, ...]:
        if plan == BASELINE:
            return ()
        left = {}
        for site, (choice,) in plan:
            options = dict(choice.options)
            keeps_all = options["vote_threshold"] == 0.0 or int(plan.digest, 16) % 2
            heads = 4 if keeps_all else options["num_groups"]
            left[site] = AttentionChoice.of("grouped_head", kept_heads=heads)
        return (AttentionPlan.of(left),)

    loop = make_loop(tmp_path, space, objectives=objectives, trials=12)
    FakeExecutor(prune=prune).run(loop)
    loop.outcome()
    trials = loop.store.trials()
    refused = [trial for trial in trials if trial.is_infeasible]
    for trial in refused:
        assert trial.plan is not None
        assert all(dict(c.options)["vote_threshold"] == 0.0 for _, (c,) in trial.plan)
        assert (trial.reason or "").startswith(f"pruned as far as can be, {whole:,} total are")
    over = [trial for trial in trials if trial.is_over_limit and not trial.is_infeasible]
    under = [trial for trial in trained(trials) if not trial.is_baseline]
    assert over and under
    assert all((trial.cost or 0) <= whole - 10_000 for trial in under)
    for trial in over:
        assert trial.cost == whole
        assert trial.reason == (
            f"after pruning, {whole:,} total are more than the limit of {whole - 10_000:,}"
        )
        assert state_text(trial) == "over a limit"
        assert trial.uses_budget and not trial.was_stopped
    assert not {trial.number for trial in over} & {trial.number for trial in front(trials)}
    assert loop.snapshot().over_limit == len(over)
    assert loop.snapshot().stopped == 0
    again = make_loop(tmp_path, space, objectives=objectives, trials=12)
    FakeExecutor(prune=prune).run(again)
    assert len(again.store.trials()) == len(trials)


def test_three_objectives_and_one_that_is_maximised(tmp_path: Path) -> None:
    objectives = Objectives(metric="bleu", maximise=True, costs=("total", "cache_bytes"), limits={})
    loop = make_loop(tmp_path, objectives=objectives, trials=12)
    FakeExecutor().run(loop)
    trials = loop.store.trials()
    done = trained(trials)
    points = {t.number: (-(t.loss or 0), t.costs["total"], t.costs["cache_bytes"]) for t in done}
    on_front = {t.number for t in front(trials)}
    for number, point in points.items():
        beaten = any(dominates(other, point) for other in points.values())
        assert (number in on_front) != beaten


def test_expected_costs_are_kept_with_a_trial(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, trials=3)
    FakeExecutor().run(loop)
    for trial in loop.store.trials():
        assert trial.plan is not None
        assert dict(trial.costs) == dict(FakeCosts().known(trial.plan))


def test_what_is_measured_beside_a_search_is_no_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its numbers are not those of the search's trials."""
    caplog.set_level("INFO")
    loop = make_loop(tmp_path, trials=12)
    loop.wording = Wording("conversion", change="change")
    for result in (
        TrialResult(losses=(3.911,), measured={"change": 0.0503}),
        TrialResult(error="no room", failure=FailureKind.TRAINING),
    ):
        job = loop.next_job()
        assert job is not None
        assert loop.snapshot().running[0].name.startswith("conversion ")
        loop.finish(job.number, result)
    assert "conversion 1 of 12: loss 3.9110, +0.0503, " in caplog.messages[0]
    assert "conversion 2 of 12 failed: no room" in caplog.messages
    assert "trial" not in caplog.text
