"""The conductor: budget, baseline, proposals, interruption, failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas_attn.attention.counting import count_plan
from nas_attn.errors import SearchError
from nas_attn.pareto import dominates
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.search.driver import lock_run_folder
from nas_attn.search.record import Record, TrialRecord, front, open_storage
from tests.search.fakes import SHAPES, FakeExecutor, make_conductor, make_sizer, make_space

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
        assert trial.parameters == 3000 + count_plan(trial.plan, SHAPES).parameters
        assert trial.commands == (("fairseq-train", trial.plan.dumps(), "--save-dir", "x"),)
    points = {t.number: (t.parameters, t.loss) for t in done}
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
        assert trial.parameters == wanted
        assert trial.text.endswith(
            "; left (first seed): encoder_self 1, decoder_self 1, encoder_decoder 1"
        )
    points = front(trials)
    assert points[0].parameters == wanted


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
    conductor = make_conductor(tmp_path)
    number = conductor.record.study.ask().number
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
            assert (trial.loss, trial.parameters) == (twin.loss, twin.parameters)


def test_the_same_seed_proposes_the_same(tmp_path: Path) -> None:
    plans = []
    for name in "ab":
        conductor = make_conductor(tmp_path / name, seed=5)
        FakeExecutor(workers=1).run(conductor)
        plans.append([trial.plan for trial in conductor.record.trials()])
    assert plans[0] == plans[1]


def test_settings_must_stay(tmp_path: Path) -> None:
    record = Record("one", open_storage(None, tmp_path), "total", create=True)
    record.keep_settings({"training": {"lr": 0.1, "seeds": [1, 2]}})
    record.keep_settings({"training": {"lr": 0.1, "seeds": [1, 2]}})
    with pytest.raises(SearchError, match=r"training\.lr \(0\.1, now 0\.2\)"):
        record.keep_settings({"training": {"lr": 0.2, "seeds": [1, 2]}})


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    with lock_run_folder(tmp_path), pytest.raises(SearchError, match="another search is running"):
        lock_run_folder(tmp_path)
    lock_run_folder(tmp_path).close()


def test_storages_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    Record("one", open_storage(url, tmp_path), "total", create=True)
    Record("one", open_storage(url, tmp_path), "total")
    with pytest.raises(SearchError, match="holds no study 'two'"):
        Record("two", open_storage(url, tmp_path), "total")
    with pytest.raises(SearchError, match="cannot open the storage nosuch"):
        open_storage("nosuch://x", tmp_path)
