"""Stopping by forecasts: who is stopped and why, after a restart as well, and what it saves."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from optuna.trial import TrialState

from nas_attn.engine.config import StoppingConfig
from nas_attn.engine.executors.simulated import SimulatedExecutor
from nas_attn.engine.loop import SearchLoop
from nas_attn.engine.rungs import Forecasts
from nas_attn.engine.stopping import ForecastRule
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.pareto import hypervolume
from nas_attn.plan import AttentionPlan
from nas_attn.simulation.command import replay_command
from nas_attn.simulation.synthetic import ReplayConfig
from nas_attn.trials.job import SeedRun, StartFolders, TrialJob, TrialResult, Validation
from tests.helpers.fakes import OBJECTIVES, kill_drivers, make_loop, make_sizer, make_space

FORECAST = {"rule": "forecast"}


def finished_trials(count: int, *, costs: int = 1) -> ForecastRule:
    """Trials 100, 101, ... in no order of size, whose losses fall by about 2 from the first."""
    rule, generator = ForecastRule(StoppingConfig(rule="forecast")), random.Random(3)
    sizes = [1000.0 * (i + 1) for i in range(count)]
    generator.shuffle(sizes)
    for number, size in enumerate(sizes, start=100):
        final = 3.0 + 5000 / size + generator.uniform(-0.1, 0.1)
        curve = [final + 2.0 + generator.uniform(-0.1, 0.1), final + 1.0, final]
        rule.add(number, final, [size] * costs, curve)
    return rule


def test_a_small_model_that_will_enter_the_front_is_not_stopped() -> None:
    """Its loss is larger than that of any other, and nothing that has finished is as small."""
    rule = finished_trials(20)
    assert rule.judge(1, 12.0, [500.0]) is None
    assert rule.judge(1, 12.0, [20000.0]) is not None
    assert rule.judge(1, 5.3, [20000.0]) is None, "it may yet be the best of all"
    assert rule.judge(2, 99.0, [999.0]) is None
    assert rule.judge(4, 99.0, [20000.0]) is None, "no curve is so long"


def test_the_reason_names_what_it_hangs_on() -> None:
    rule = finished_trials(20)
    decision = rule.judge(2, 6.5, [7000.0])
    assert decision is not None
    assert decision.rival in range(100, 120)
    assert decision.rival_loss <= decision.best <= decision.expected <= 6.5
    assert decision.reason == (
        f"stopped early: 6.5000 at validation 2, forecast to end at {decision.expected:.4f}, or "
        f"{decision.best:.4f} at best (90 % coverage, 20 finished trials); trial {decision.rival}, "
        f"which costs no more, has {decision.rival_loss:.4f}"
    )


def test_too_few_have_finished() -> None:
    assert finished_trials(8).judge(1, 99.0, [99999.0]) is None
    assert finished_trials(9).judge(1, 99.0, [99999.0]) is not None


def test_every_known_cost_counts() -> None:
    rule = finished_trials(20, costs=2)
    assert rule.judge(1, 99.0, [20000.0, 20000.0]) is not None
    assert rule.judge(1, 99.0, [20000.0, 1.0]) is None
    assert rule.judge(1, 99.0, [20000.0, float("inf")]) is not None, "not known before training"


def test_losses_before_a_vote_is_over_do_not_count() -> None:
    rule = ForecastRule(StoppingConfig(rule="forecast"))
    for number in range(12):
        final = 5.0 + number * 7 % 12 / 100
        rule.add(number, final, [10.0 + number % 5], [0.1, 0.2, final + 1, final], since=3)
    assert rule.judge(2, 99.0, [20.0]) is None
    assert rule.judge(3, 99.0, [20.0]) is not None
    assert rule.judge(3, 6.1, [20.0]) is not None
    assert rule.judge(3, 4.9, [20.0]) is None


def tell(
    loop: SearchLoop, number: int, validation: int, loss: float, *, is_last: bool = False
) -> bool:
    news = Validation(
        seed=1,
        num_updates=10 * validation,
        loss=loss,
        validation=validation,
        is_last=is_last,
    )
    return loop.progress(number, news)


def finish(loop: SearchLoop, number: int, final: float, *, sign: float = 1.0) -> None:
    for validation in (1, 2, 3):
        assert tell(loop, number, validation, final + sign * (3 - validation))
    loop.finish(number, TrialResult(losses=(final,)))


def begun(loop: SearchLoop, count: int) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Running trials: the baseline and the two largest others; and the rest."""
    numbers = [job.number for _ in range(count) if (job := loop.next_job()) is not None]
    trials = [loop.store.cached[number] for number in numbers]
    trials.sort(key=lambda trial: (trial.is_baseline, trial.cost or 0), reverse=True)
    return trials[:3], trials[3:]


def test_what_was_decided_is_not_decided_again(tmp_path: Path) -> None:
    """After a restart validations are told again, and meanwhile more is known."""
    settings = {"trials": 14, "startup_trials": 14, "stopping": {**FORECAST, "coverage": 0.8}}
    loop = make_loop(tmp_path, **settings)
    (_, early, late), others = begun(loop, 14)
    assert tell(loop, early.number, 1, 99.0), "nothing has finished"
    for place, other in enumerate(others):
        finish(loop, other.number, 4.0 + place % 3 / 10)
    assert not tell(loop, late.number, 1, 99.0)
    kill_drivers()
    again = make_loop(tmp_path, **settings)
    while (job := again.next_job()) is not None:
        assert job.number != late.number, "it is over"
    assert tell(again, early.number, 1, 99.0), "it went on"
    assert not tell(again, early.number, 2, 99.0)
    again.finish(early.number, TrialResult())
    for number, validation in ((early.number, "2"), (late.number, "1")):
        trial = again.store.refresh(number)
        assert trial.state == TrialState.PRUNED
        assert trial.was_stopped
        assert list(trial.rungs) == [validation]
        assert (trial.reason or "").startswith(f"stopped early: 99.0000 at validation {validation}")


def test_the_baseline_the_last_validation_and_unknown_costs_go_on(tmp_path: Path) -> None:
    settings = {"trials": 14, "startup_trials": 14, "stopping": {**FORECAST, "first": 2}}
    loop = make_loop(tmp_path, **settings)
    (baseline, one, other), rest = begun(loop, 14)
    for place, trial in enumerate(rest):
        finish(loop, trial.number, 4.0 + place % 3 / 10)
    assert baseline.is_baseline
    assert tell(loop, baseline.number, 2, 99.0)
    assert tell(loop, one.number, 1, 99.0), "before the first decision"
    assert tell(loop, one.number, 3, 99.0, is_last=True)
    news = Validation(seed=1, num_updates=20, loss=99.0, validation=2)
    forecasts = Forecasts(loop.store, loop.config.stopping)
    assert not forecasts.reach(replace(other, cost_is_exact=False), news)
    assert forecasts.reach(other, news)
    assert loop.store.refresh(other.number).settled == 2, "earlier ones were not told: of a vote"
    assert not forecasts.decide(other, news)


def test_higher_may_be_better(tmp_path: Path) -> None:
    bleu = replace(OBJECTIVES, metric="bleu", maximise=True)
    loop = make_loop(tmp_path, trials=14, startup_trials=14, objectives=bleu, stopping=FORECAST)
    (_, good, bad), others = begun(loop, 14)
    for place, other in enumerate(others):
        finish(loop, other.number, 30.0 + place % 3 / 10, sign=-1.0)
    assert tell(loop, good.number, 1, 31.0)
    assert not tell(loop, bad.number, 1, 1.0)
    loop.finish(bad.number, TrialResult())
    reason = loop.store.refresh(bad.number).reason or ""
    assert reason.startswith("stopped early: 1.0000 at validation 1, forecast to end at ")
    assert reason.endswith("which costs no more, has 30.2000")


def test_the_same_front_for_fewer_updates(tmp_path: Path) -> None:
    """A simulated search of the same proposals, four trials at a time."""

    def search(rule: str) -> list[TrialRecord]:
        folder = tmp_path / rule
        loop = make_loop(
            folder,
            make_space(decide="layer"),
            trials=50,
            sampler="stratified_random",
            stopping={"rule": rule},
        )

        def build(number: int, plan: AttentionPlan, _: StartFolders) -> TrialJob:
            total = make_sizer().size(plan).total
            command = replay_command(ReplayConfig(), plan.dumps(), 3 * total, 1, folder)
            run = SeedRun(seed=1, folder=str(folder), command=tuple(command))
            return TrialJob(
                number=number, folder=str(folder), metric="loss", parameters=total, runs=(run,)
            )

        loop.build_job = build
        SimulatedExecutor(4).run(loop)
        return list(loop.store.trials())

    def volume(trials: list[TrialRecord]) -> float:
        points = [trial.point for trial in trials if trial.point is not None]
        return hypervolume(points, (6.0, 2e5))

    def updates(trials: list[TrialRecord]) -> int:
        return sum(trial.updates for trial in trials)

    whole, stopped = search("none"), search("forecast")
    assert [trial.plan for trial in whole] == [trial.plan for trial in stopped]
    assert updates(stopped) < 0.6 * updates(whole)
    assert volume(stopped) > 0.99 * volume(whole)
    assert not any(trial.was_stopped for trial in whole)
    assert all(trial.reason for trial in stopped if trial.was_stopped)
