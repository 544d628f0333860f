"""The conductor: budget, baseline, proposals, interruption, failure."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from nas_attn.attention.counting import count_plan
from nas_attn.errors import DataError, SearchError
from nas_attn.pareto import dominates
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.report.tables import state_text
from nas_attn.search.candidates import Proposal
from nas_attn.search.objectives import Objectives
from nas_attn.search.storage import open_storage
from nas_attn.search.store import DRIVER, PLAN, NewTrial, Record, TrialRecord, front
from nas_attn.trials.failures import FailureKind
from nas_attn.trials.job import Progress, TrialJob, TrialResult
from tests.search.fakes import (
    BASELINE,
    OBJECTIVES,
    SHAPES,
    FakeCosts,
    FakeExecutor,
    kill_drivers,
    make_conductor,
    make_sizer,
    make_space,
)

SAMPLERS = ["tpe", "nsga2", "gp", "random", "stratified_random"]


def trained(trials: list[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial.is_trained]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_whole_search(sampler: str, tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, sampler=sampler, trials=15)
    executor = FakeExecutor()
    executor.run(conductor)
    trials = conductor.record.trials()
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
    assert conductor.outcome().finished == 15


def test_the_baseline_comes_first_even_if_the_space_lacks_it(tmp_path: Path) -> None:
    space = make_space(schemes={"collaborative": {"shared_dim": [2, 4, 8, 16]}})
    conductor = make_conductor(tmp_path, space, trials=6)
    FakeExecutor().run(conductor)
    trials = conductor.record.trials()
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
    conductor = make_conductor(tmp_path, space, trials=5, sampler="stratified_random")
    planned = {}
    FakeExecutor(prune=lambda plan: planned.setdefault(plan, prune(plan))).run(conductor)
    sizer = make_sizer()
    wanted = (
        sizer.size(AttentionPlan.uniform(left)).total
        + sizer.size(AttentionPlan.uniform(more)).total
    ) / 2
    trials = conductor.record.trials()
    assert len(trials) == 5
    for trial in trials:
        assert trial.plan is not None
        if trial.is_baseline:
            assert trial.certain
            assert trial.pruned == ()
            continue
        assert trial.certain == ("pillars" in str(trial.plan))
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
        FakeExecutor(die_after=die_after).run(make_conductor(tmp_path))
    again = make_conductor(tmp_path)
    left = {t.number for t in again.record.trials() if t.state == TrialState.RUNNING}
    assert len(left) == 2
    executor = FakeExecutor()
    executor.run(again)
    trials = again.record.trials()
    assert left <= set(executor.ran)
    kill_drivers()
    assert len(executor.ran) == 12 - die_after  # what was finished did not run again
    assert [t.state for t in trials if t.counts] == [TrialState.COMPLETE] * 12
    assert len(trained(trials)) == 12
    third = make_conductor(tmp_path)
    assert third.next_job() is None


def test_more_trials_extend_a_finished_search(tmp_path: Path) -> None:
    FakeExecutor().run(make_conductor(tmp_path, trials=5))
    executor = FakeExecutor()
    conductor = make_conductor(tmp_path, trials=9)
    executor.run(conductor)
    assert len(executor.ran) == 4
    assert len(trained(conductor.record.trials())) == 9


def test_a_trial_that_was_never_planned_is_closed(tmp_path: Path) -> None:
    """Records of old hold such trials; now a trial has its plan from the beginning."""
    conductor = make_conductor(tmp_path)
    number = conductor.record.create(NewTrial(attributes={}))
    kill_drivers()
    again = make_conductor(tmp_path)
    trial = again.record.trials()[number]
    assert trial.state == TrialState.FAIL
    assert trial.reason == "the driver died before the trial was planned"
    FakeExecutor().run(again)
    assert len(trained(again.record.trials())) == 12


def test_failed_trials_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path)
    FakeExecutor(error=lambda job: "out of memory" if job.number in (3, 5) else None).run(conductor)
    trials = conductor.record.trials()
    assert [(t.number, t.reason) for t in trials if t.reason] == [
        (3, "out of memory"),
        (5, "out of memory"),
    ]
    assert len(trained(trials)) == 10
    assert conductor.snapshot().failed == 2


def test_a_failed_baseline_ends_the_search_and_is_tried_again(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path)
    FakeExecutor(workers=1, error=lambda job: "no such file").run(conductor)
    with pytest.raises(SearchError, match=r"the baseline \(trial 0\) failed.*no such file"):
        conductor.outcome()
    assert len(conductor.record.trials()) == 1
    again = make_conductor(tmp_path)
    FakeExecutor().run(again)
    baseline = [t for t in again.record.trials() if t.is_baseline and t.is_trained]
    assert len(baseline) == 1


@pytest.mark.parametrize("sampler", ["tpe", "stratified_random"])
def test_a_small_space_ends_when_it_is_empty(sampler: str, tmp_path: Path) -> None:
    space = make_space("model")
    conductor = make_conductor(tmp_path, space, trials=50, sampler=sampler)
    executor = FakeExecutor()
    executor.run(conductor)
    assert len(executor.ran) == space.size == 11
    for trial in conductor.record.trials():
        if trial.duplicate_of is not None and trial.is_complete:
            twin = conductor.record.trials()[trial.duplicate_of]
            assert (trial.loss, trial.cost) == (twin.loss, twin.cost)


def test_the_same_seed_proposes_the_same(tmp_path: Path) -> None:
    plans = []
    for name in "ab":
        conductor = make_conductor(tmp_path / name, seed=5)
        FakeExecutor(workers=1).run(conductor)
        plans.append([trial.plan for trial in conductor.record.trials()])
    assert plans[0] == plans[1]


def test_settings_must_stay(tmp_path: Path) -> None:
    record = Record("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    record.keep_settings({"training": {"lr": 0.1, "seeds": [1, 2]}})
    record.keep_settings({"training": {"lr": 0.1, "seeds": [1, 2]}})
    with pytest.raises(SearchError, match=r"training\.lr \(0\.1, now 0\.2\)"):
        record.keep_settings({"training": {"lr": 0.2, "seeds": [1, 2]}})


def test_numbers_that_older_records_hold_as_words_stay(tmp_path: Path) -> None:
    record = Record("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    record.keep_settings({"training": {"lr": "1e-3", "optimizer": "adam"}})
    record.keep_settings({"training": {"lr": 0.001, "optimizer": "adam"}})
    with pytest.raises(SearchError, match=r"training\.lr \('1e-3', now 0\.002\)"):
        record.keep_settings({"training": {"lr": 0.002, "optimizer": "adam"}})
    with pytest.raises(SearchError, match=r"training\.optimizer \('adam', now 1\)"):
        record.keep_settings({"training": {"lr": 0.001, "optimizer": 1}})


def test_refused_flags_that_change_no_loss_can_be_left_out(tmp_path: Path) -> None:
    record = Record("one", open_storage(None, tmp_path), OBJECTIVES, create=True)
    stock = {
        "valid-subset": "valid",
        "keep_last_epochs": 5,
        "bpe": "gpt2",
        "disable-validation": False,
    }
    record.keep_settings({"training": {"arguments": {"lr": 0.1, "save-interval": 2, **stock}}})
    record.keep_settings({"training": {"arguments": {"lr": 0.1, "save-interval": 2}}})
    with pytest.raises(SearchError, match=r"arguments\.save-interval \(2, now None\)\. Restore"):
        record.keep_settings({"training": {"arguments": {"lr": 0.1}}})


def test_storages_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    Record("one", open_storage(url, tmp_path), OBJECTIVES, create=True)
    Record("one", open_storage(url, tmp_path), OBJECTIVES)
    with pytest.raises(SearchError, match="holds no study 'two'"):
        Record("two", open_storage(url, tmp_path), OBJECTIVES)
    with pytest.raises(SearchError, match="cannot open the storage nosuch"):
        open_storage("nosuch://x", tmp_path)


def test_one_driver_leaves_and_another_goes_on_without_a_pause(tmp_path: Path) -> None:
    first = make_conductor(tmp_path)
    job = first.next_job()
    assert job is not None
    second = make_conductor(tmp_path)
    taken = second.next_job()
    assert taken is not None
    assert taken.number != job.number, "the first driver lives"
    first.ownership.close()
    second._looked = 0.0
    taken = second.next_job()
    assert taken is not None
    assert taken.number == job.number
    first.finish(job.number, TrialResult(losses=(0.1,), seconds=1.0))
    second.finish(job.number, TrialResult(losses=(0.2,), seconds=1.0))
    trials = second.record.trials()
    assert trials[job.number].loss == 0.2, "what a driver says of a trial it has lost is ignored"


def test_a_trial_that_was_taken_over_is_not_trained_on(tmp_path: Path) -> None:
    """Whether the other driver still trains it or has finished it."""
    for finished in (False, True):
        folder = tmp_path / str(finished)
        first = make_conductor(folder, trials=4)
        job = first.next_job()
        assert job is not None
        first.ownership.close()
        second = make_conductor(folder, trials=4)
        taken = second.next_job()
        assert taken is not None
        assert taken.number == job.number
        if finished:
            second.finish(job.number, TrialResult(losses=(0.2,), seconds=1.0))
        news = Progress(seed=1, num_updates=5, loss=1.0)
        assert not first.progress(job.number, news)
        first.finish(job.number, TrialResult(seconds=1.0))
        assert second.record.now(job.number).curve == {}


def test_two_drivers_share_the_work(tmp_path: Path) -> None:
    """Turn by turn, each with proposals from the history that it sees, none of them twice."""
    drivers = [make_conductor(tmp_path, trials=20) for _ in range(2)]
    ran: list[tuple[int, int]] = []
    waiting: list[tuple[int, TrialJob]] = []
    while not all(driver.is_over() for driver in drivers):
        for index, driver in enumerate(drivers):
            driver._looked = 0.0
            job = driver.next_job()
            if job is not None:
                waiting.append((index, job))
        for index, job in waiting:
            ran.append((index, job.number))
            drivers[index].finish(
                job.number,
                TrialResult(losses=(1.0 / job.number if job.number else 2.0,), seconds=1.0),
            )
        waiting.clear()
    trials = drivers[0].record.trials()
    done = trained(trials)
    assert len(done) == len(ran) == 20
    assert len({trial.plan for trial in done}) == 20
    assert {index for index, _ in ran} == {0, 1}
    assert all(trial.state.is_finished() for trial in trials)
    assert all(trial.reason for trial in trials if trial.is_withdrawn)


def test_of_two_claims_the_first_holds(tmp_path: Path) -> None:
    first = make_conductor(tmp_path)
    job = first.next_job()
    assert job is not None
    kill_drivers()
    others = [make_conductor(tmp_path) for _ in range(3)]
    jobs = [driver.next_job() for driver in others]
    assert [job is not None and job.number for job in jobs].count(0) == 1


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind.can_retry])
def test_a_fault_that_may_not_come_again_is_tried_again(
    kind: FailureKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_attn.search.loop.RETRY_SECONDS", (0.0,))
    seen: dict[int, int] = {}

    def error(job: TrialJob) -> TrialResult | None:
        seen[job.number] = seen.get(job.number, 0) + 1
        if job.number == 3 and seen[3] < 3:
            return TrialResult(error="it broke", failure=kind, seconds=1.0)
        return None

    conductor = make_conductor(tmp_path, trials=6)
    FakeExecutor(error=error).run(conductor)
    trials = conductor.record.trials()
    assert len(trained(trials)) == 6
    assert [attempt["failure"] for attempt in trials[3].attempts] == [kind, kind]


WARM = {"warm_start": {"source": "baseline"}}


def test_warm_trials_wait_for_the_baseline(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=4, **WARM)
    told: list[str | None] = []
    build = conductor.build_job

    def tell(number: int, plan: AttentionPlan, baseline: str | None) -> TrialJob:
        told.append(baseline)
        return build(number, plan, baseline)

    conductor.build_job = tell
    first = conductor.next_job()
    assert first is not None
    assert conductor.next_job() is None
    assert not conductor.is_over()
    conductor.progress(first.number, Progress(seed=1, num_updates=70, loss=9.0, is_start=True))
    assert conductor.record.now(first.number).curve == {}, "a start is not the trial's curve"
    conductor.finish(first.number, TrialResult(losses=(0.5,), seconds=1.0, updates=80))
    assert conductor.record.trials()[0].updates == 80
    assert conductor.next_job() is not None
    assert conductor.next_job() is not None
    assert told == [None, first.folder, first.folder]


def test_cold_trials_wait_for_nobody(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=4, warm_start={"source": "nothing"})
    assert conductor.next_job() is not None
    assert conductor.next_job() is not None


def test_warm_trials_wait_for_another_driver_s_baseline(tmp_path: Path) -> None:
    first, second = (make_conductor(tmp_path, trials=4, **WARM) for _ in range(2))
    job = first.next_job()
    assert job is not None
    assert second.next_job() is None
    first.finish(job.number, TrialResult(losses=(0.5,), seconds=1.0))
    second._looked = second._read_again = 0.0
    assert second.next_job() is not None


def test_a_baseline_that_failed_is_trained_by_the_next_search(tmp_path: Path) -> None:
    broken = TrialResult(error="no", failure=FailureKind.TRAINING, seconds=1.0)
    conductor = make_conductor(tmp_path, trials=4, **WARM)
    FakeExecutor(error=lambda job: broken).run(conductor)
    assert conductor.has_given_up
    kill_drivers()
    again = make_conductor(tmp_path, trials=4, **WARM)
    FakeExecutor().run(again)
    assert [t.is_baseline for t in again.record.trials()] == [True, True, False, False]
    assert len(trained(again.record.trials())) == 3


def test_retries_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_attn.search.loop.RETRY_SECONDS", (0.0,))
    broken = TrialResult(error="no room", failure=FailureKind.DISK_FULL, seconds=1.0)
    conductor = make_conductor(tmp_path, trials=6)
    executor = FakeExecutor(error=lambda job: broken if job.number == 3 else None)
    executor.run(conductor)
    trial = conductor.record.trials()[3]
    assert executor.ran.count(3) == 3
    assert (trial.state, trial.failure, trial.reason) == (TrialState.FAIL, "disk_full", "no room")


def test_what_would_fail_again_is_not_tried_again(tmp_path: Path) -> None:
    nan = TrialResult(error="the loss is nan", failure=FailureKind.NOT_FINITE, seconds=1.0)
    conductor = make_conductor(tmp_path, trials=6)
    executor = FakeExecutor(error=lambda job: nan if job.number == 3 else None)
    executor.run(conductor)
    assert executor.ran.count(3) == 1
    assert conductor.record.trials()[3].failure == "not_finite"


def test_a_study_in_which_everything_fails_ends_early(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=50, give_up_after=4)
    FakeExecutor(error=lambda job: "no such module" if job.number > 2 else None).run(conductor)
    with pytest.raises(
        SearchError, match=r"[45] trials in a row failed \(. training_error\).*module"
    ):
        conductor.outcome()
    assert len(conductor.record.trials()) <= 9


def test_limits_are_kept(tmp_path: Path) -> None:
    limits = {"total": 80_000}
    objectives = Objectives(loss="loss", maximise=False, costs=("total",), limits=limits)
    conductor = make_conductor(tmp_path, objectives=objectives, trials=14)
    FakeExecutor().run(conductor)
    trials = conductor.record.trials()
    done = trained(trials)
    assert len(done) == 14
    assert all(t.cost is not None and (t.cost <= 80_000 or t.is_baseline) for t in done)
    refused = [trial for trial in trials if trial.is_refused]
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
        loss="loss", maximise=False, costs=("total",), limits={"total": whole - 10_000}
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

    conductor = make_conductor(tmp_path, space, objectives=objectives, trials=12)
    FakeExecutor(prune=prune).run(conductor)
    conductor.outcome()
    trials = conductor.record.trials()
    refused = [trial for trial in trials if trial.is_refused]
    for trial in refused:
        assert trial.plan is not None
        assert all(dict(c.options)["vote_threshold"] == 0.0 for _, (c,) in trial.plan)
        assert (trial.reason or "").startswith(f"pruned as far as can be, {whole:,} total are")
    over = [trial for trial in trials if trial.is_over_limit and not trial.is_refused]
    under = [trial for trial in trained(trials) if not trial.is_baseline]
    assert over and under
    assert all((trial.cost or 0) <= whole - 10_000 for trial in under)
    for trial in over:
        assert trial.cost == whole
        assert trial.reason == (
            f"after pruning, {whole:,} total are more than the limit of {whole - 10_000:,}"
        )
        assert state_text(trial) == "over a limit"
        assert trial.counts and not trial.was_stopped
    assert not {trial.number for trial in over} & {trial.number for trial in front(trials)}
    assert conductor.snapshot().over_limit == len(over)
    assert conductor.snapshot().stopped == 0
    again = make_conductor(tmp_path, space, objectives=objectives, trials=12)
    FakeExecutor(prune=prune).run(again)
    assert len(again.record.trials()) == len(trials)


def test_proposals_that_come_to_nothing_end(tmp_path: Path) -> None:
    """A proposer that offers nothing else than what is refused does not fill the record."""
    conductor = make_conductor(tmp_path, trials=5)
    real = conductor.proposer.propose

    def propose() -> Proposal | None:
        found = real()
        if found is None or found.number == 0:
            return found
        return replace(found, excess="9 total are more than the limit of 8")

    conductor.proposer.propose = propose  # type: ignore[method-assign]
    FakeExecutor(workers=1).run(conductor)
    with pytest.raises(SearchError, match=r"80 proposals in a row repeated .* over a limit"):
        conductor.outcome()
    assert len(conductor.record.trials()) == 81


def test_three_objectives_and_one_that_is_maximised(tmp_path: Path) -> None:
    objectives = Objectives(loss="bleu", maximise=True, costs=("total", "cache_bytes"), limits={})
    conductor = make_conductor(tmp_path, objectives=objectives, trials=12)
    FakeExecutor().run(conductor)
    trials = conductor.record.trials()
    done = trained(trials)
    points = {t.number: (-(t.loss or 0), t.costs["total"], t.costs["cache_bytes"]) for t in done}
    on_front = {t.number for t in front(trials)}
    for number, point in points.items():
        beaten = any(dominates(other, point) for other in points.values())
        assert (number in on_front) != beaten


def test_other_directions_are_another_study(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    Record("one", storage, OBJECTIVES, create=True)
    other = Objectives(loss="bleu", maximise=True, costs=("total",), limits={})
    with pytest.raises(SearchError, match="has the directions minimize, minimize, but"):
        Record("one", storage, other)


def test_a_driver_that_was_slower_withdraws(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path)
    record = conductor.record
    late = {PLAN: BASELINE.to_json(), DRIVER: "other", "proposal": {"number": 7, "running": []}}
    number = record.create(NewTrial(attributes=late))
    assert number == 0
    FakeExecutor().run(conductor)
    trials = record.trials()
    assert trials[0].is_withdrawn
    assert trials[0].state == TrialState.FAIL
    assert len(trained(trials)) == 12


def test_expected_costs_are_kept_with_a_trial(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=3)
    FakeExecutor().run(conductor)
    for trial in conductor.record.trials():
        assert trial.plan is not None
        assert dict(trial.costs) == dict(FakeCosts().known(trial.plan))


def test_a_loss_that_is_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    """Whichever executor tells it."""
    conductor = make_conductor(tmp_path, trials=6)
    odd = {3: (0.5, math.inf), 4: (math.nan,)}
    told = {number: TrialResult(losses=losses, seconds=1.0) for number, losses in odd.items()}
    FakeExecutor(error=lambda job: told.get(job.number)).run(conductor)
    trials = conductor.record.trials()
    assert [(t.state, t.failure) for t in trials[3:5]] == [(TrialState.FAIL, "not_finite")] * 2
    assert trials[3].reason == "the loss is 0.5, inf"
    assert len(trained(trials)) == 4


def test_a_pruned_plan_that_is_none_is_a_failed_trial(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=6)
    plans = ({"encoder_self": [{"scheme": "multi_head"}] * 7},)
    odd = TrialResult(losses=(0.5,), plans=plans, seconds=1.0)
    FakeExecutor(error=lambda job: odd if job.number == 3 else None).run(conductor)
    trials = conductor.record.trials()
    assert (trials[3].state, trials[3].failure) == (TrialState.FAIL, "damaged_files")
    assert len(trained(trials)) == 5


def test_a_trial_that_cannot_be_built_is_a_failed_one(tmp_path: Path) -> None:
    conductor = make_conductor(tmp_path, trials=6, give_up_after=4)
    build = conductor.build_job

    def fail(number: int, plan: AttentionPlan, baseline: str | None) -> TrialJob:
        if number in (2, 3) or number > 4:
            raise DataError(f"no curve for trial {number}")
        return build(number, plan, baseline)

    conductor.build_job = fail
    FakeExecutor().run(conductor)
    trials = conductor.record.trials()
    assert [t.number for t in trained(trials)] == [0, 1, 4]
    assert trials[2].reason == "no curve for trial 2" and trials[2].failure == "training_error"
    assert len(trials) == 6 and conductor.is_over()
    kill_drivers()
    more = make_conductor(tmp_path, trials=50, give_up_after=4)
    more.build_job = fail
    FakeExecutor().run(more)
    with pytest.raises(SearchError, match="4 trials in a row failed"):
        more.outcome()


@pytest.mark.parametrize("content", [None, b"PK\3\4 cut off"])
def test_without_what_trials_start_from_none_is_begun(
    content: bytes | None, tmp_path: Path
) -> None:
    conductor = make_conductor(tmp_path, trials=9, **WARM)
    build = conductor.build_job
    start = tmp_path / "00000" / "seed-1" / "start" / "checkpoint_best.pt"
    start.parent.mkdir(parents=True)
    torch.save({}, start)

    def warm(number: int, plan: AttentionPlan, baseline: str | None) -> TrialJob:
        job = build(number, plan, baseline)
        return replace(job, needs=(str(start),) if number else ())

    conductor.build_job = warm
    executor = FakeExecutor(workers=1)

    def lose_it(job: TrialJob) -> None:
        if job.number == 2:
            (tmp_path / "00000" / "commands.sh").touch()
            start.unlink()
            if content is not None:
                start.write_bytes(content)

    executor.error = lose_it
    executor.run(conductor)
    trials = conductor.record.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3, "none has failed"
    with pytest.raises(SearchError) as error:
        conductor.outcome()
    fault = "is gone" if content is None else "is damaged"
    assert f"{start}, which trials start from, {fault}, so none was begun" in str(error.value)
    assert "train the baseline again (remove the checkpoints of" in str(error.value)
    torch.save({}, start)
    kill_drivers()
    again = make_conductor(tmp_path, trials=9, **WARM)
    FakeExecutor().run(again)
    assert len(trained(again.record.trials())) == 9
