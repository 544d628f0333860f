"""Searches compared on a table of trainings: what is known of it, shares, and going on."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_attn.benchmark.search import peers
from nas_attn.benchmark.search.comparison import lead, mean_of, median_of, reached
from nas_attn.benchmark.search.peers import replay_peer
from nas_attn.benchmark.search.replayed import Run, replay_search
from nas_attn.benchmark.search.steps import Step, share_of, steps_of
from nas_attn.benchmark.search.table import SearchTable, read_table
from nas_attn.cli.console import console
from nas_attn.engine.sensitivity import single_changes
from nas_attn.errors import DataError, UsageError
from nas_attn.study.study import Study
from nas_attn.workflows import bench_search
from nas_attn.workflows.bench_search import compare_searches
from tests.helpers.cli import invoke
from tests.helpers.tables import MADE_UP, SCHEMES, size_of, table_study, write_table


@pytest.fixture(scope="module")
def study() -> Study:
    return table_study()


@pytest.fixture(scope="module")
def table(study: Study, tmp_path_factory: pytest.TempPathFactory) -> SearchTable:
    """All 27 plans, with three seeds."""
    path = write_table(tmp_path_factory.mktemp("table"), study, seeds=(1, 2, 3))
    return read_table("made", path, study)


def run_of(sampler: str, **changes: Any) -> Run:
    return Run(
        **{"sampler": sampler, "rule": "none", "workers": 1, "seed": 1, "trials": 12, **changes}
    )


def test_costs_are_counted_with_the_rest_of_the_rows(study: Study, table: SearchTable) -> None:
    assert len(table.plans) == 27 and table.missing == 0
    for plan in table.plans.values():
        assert table.cost(plan) == (size_of(study, plan)["total"],)
        known = table.costs.known(plan)
        assert {name: known[name] for name in size_of(study, plan)} == size_of(study, plan)


def test_shares_are_what_counting_cells_gives(table: SearchTable) -> None:
    weak, most = table.reference
    losses = sorted({weak, *(p[0] for p in table.points.values() if p[0] < weak)})
    costs = sorted({most, *(p[1] for p in table.points.values() if p[1] < most)})

    def area(points: list[tuple[float, ...]]) -> float:
        cells = 0.0
        for low, high in itertools.pairwise(losses):
            for left, right in itertools.pairwise(costs):
                if any(loss <= low and cost <= left for loss, cost in points):
                    cells += (high - low) * (right - left)
        return cells

    generator, texts = random.Random(1), list(table.plans)
    for count in (1, 2, 5, 9, 20, 27):
        finished = generator.sample(texts, count)
        wanted = area([table.points[t] for t in finished]) / area(list(table.points.values()))
        assert share_of(table, finished) == pytest.approx(wanted)
    assert wanted == 1


def test_searches_end_with_what_their_trials_are_worth(table: SearchTable) -> None:
    ends = {}
    for sampler in ("random", "stratified_random", "tpe"):
        outcome = replay_search(table, run_of(sampler))
        plans = [trial.plan for trial in outcome.trials]
        assert plans[0] == table.baseline.dumps() and len(set(plans)) == 12
        steps = steps_of(table, outcome.trials)
        assert [step.trials for step in steps] == list(range(1, 13))
        assert [step.updates for step in steps] == [900 * n for n in range(1, 13)]
        assert steps[-1].share == share_of(table, plans) and 0 < steps[-1].share <= 1
        ends[sampler] = plans
        assert [t.plan for t in replay_search(table, run_of(sampler)).trials] == plans
    assert ends["tpe"][:9] == ends["stratified_random"][:9] == ends["random"][:9]
    assert len({tuple(plans) for plans in ends.values()}) == 3
    every = replay_search(table, run_of("stratified_random", trials=27))
    assert sorted(t.plan for t in every.trials) == sorted(table.plans)


def test_predictions_beside_a_table_lead_a_search(study: Study, tmp_path: Path) -> None:
    path = write_table(tmp_path, study)
    run = run_of("known_cost+predictions", trials=20)
    with pytest.raises(UsageError, match=r"needs .*made_predicted\.csv"):
        replay_search(read_table("made", path, study), run)
    rows = [
        f'{change.unit},"{change.choice}",{0.1 * number},0.01'
        for number, change in enumerate(single_changes(study.space, study.baseline, lambda _: True))
    ]
    file = tmp_path / "made_predicted.csv"
    file.write_text("\n".join(["unit,choice,change,change_error", *rows]))
    table = read_table("made", path, study)
    assert sorted(table.predicted.values()) == pytest.approx([0.1 * n for n in range(len(rows))])
    led, alone = (
        [trial.plan for trial in replay_search(table, of).trials]
        for of in (run, run_of("known_cost", trials=20))
    )
    assert led[:4] == alone[:4] and led != alone
    file.write_text("unit,choice,change\nencoder_self,multi_head,much\n")
    with pytest.raises(DataError, match=r"made_predicted\.csv cannot be read"):
        read_table("made", path, study)


def test_stopped_trials_are_paid_for_and_not_reported(table: SearchTable) -> None:
    outcome = replay_search(table, run_of("random", rule="halving", trials=20))
    assert len(outcome.trials) == 20
    stopped = [trial for trial in outcome.trials if not trial.is_finished]
    assert stopped and all(0 < trial.updates < 900 for trial in stopped)
    steps = steps_of(table, outcome.trials)
    assert steps[-1].updates == sum(trial.updates for trial in outcome.trials) < 20 * 900
    assert steps[-1].share == share_of(table, [t.plan for t in outcome.trials if t.is_finished])


def test_workers_take_less_time(table: SearchTable) -> None:
    alone = steps_of(table, replay_search(table, run_of("tpe")).trials)
    eight = steps_of(table, replay_search(table, run_of("tpe", workers=8)).trials)
    assert alone[-1].time == pytest.approx(120) and eight[-1].time == pytest.approx(20)


def test_a_peer_begins_as_we_do(table: SearchTable) -> None:
    ours = [trial.plan for trial in replay_search(table, run_of("tpe")).trials]
    outcome = replay_peer(table, run_of("nsga3", trials=20))
    plans = [trial.plan for trial in outcome.trials]
    assert plans[:9] == ours[:9]
    assert len(set(plans)) == 20 and {*plans} <= {*table.plans}
    assert plans == [trial.plan for trial in replay_peer(table, run_of("nsga3", trials=20)).trials]
    with pytest.raises(UsageError, match="--rule none and --workers 1 alone"):
        replay_peer(table, run_of("nsga3", rule="halving"))


def test_plans_that_are_missing_are_never_tried(study: Study, tmp_path: Path) -> None:
    whole = read_table("made", write_table(tmp_path, study), study)
    texts = [text for text in whole.plans if text != study.baseline.dumps()]
    path = write_table(tmp_path, study, without=texts[::2])
    with pytest.raises(UsageError, match=r"lacks 13 of the 27 plans of made_up, such as "):
        read_table("made", path, study)
    left = read_table("made", path, study, allow_missing=True)
    assert (len(left.plans), left.missing) == (14, 13)
    for sampler in ("random", "stratified_random", "tpe"):
        plans = [t.plan for t in replay_search(left, run_of(sampler, trials=14)).trials]
        assert {*plans} == {*left.plans} and len(plans) == 14
    assert {t.plan for t in replay_peer(left, run_of("nsga3", trials=14)).trials} == {*left.plans}


def test_refuses_what_is_no_table_of_the_study(study: Study, tmp_path: Path) -> None:
    path = write_table(tmp_path, study)
    few = {"decide": "model", "schemes": SCHEMES}
    with pytest.raises(DataError, match="holds a plan that is none of made_up"):
        read_table("made", path, table_study(space=few))
    plans = tmp_path / "made_plans.csv"
    rows = plans.read_text().splitlines()
    plans.write_text("\n".join([*rows[:5], rows[5].replace(",2", ",3", 1), *rows[6:]]))
    with pytest.raises(DataError, match=r"made_plans.csv: (attention|rows)"):
        read_table("made", path, study)
    plans.unlink()
    with pytest.raises(DataError, match=r"made_plans.csv cannot be read"):
        read_table("made", path, study)


def test_estimates() -> None:
    def search(*shares: float) -> list[Step]:
        return [Step(n, 10 * n, 1.0 * n, share) for n, share in enumerate(shares, start=1)]

    runs = {1: search(0.5, 0.9, 0.95), 2: search(0.7, 0.8, 0.85), 3: search(0.1, 0.2, 0.92)}
    found = reached(runs, 0.9)
    assert (found.trials.value, found.updates.value, found.missed) == (3, 30, 1)
    assert (found.trials.low, found.trials.high) == (2, math.inf)
    assert found.trainings(10).value == 3
    others = {seed: search(*(step.share - 0.1 for step in steps)) for seed, steps in runs.items()}
    gain = lead(runs, others, 3)
    assert [gain.value, gain.low, gain.high] == pytest.approx([0.1] * 3)
    mean = mean_of([1.0, 2.0, 3.0, 6.0])
    assert mean.value == 3.0 and 1.0 <= mean.low < 3.0 < mean.high <= 6.0
    assert median_of([math.inf, 1.0, 2.0]).value == 2.0


def test_goes_on_and_shows_what_is_there(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "made_up.yaml"
    file.write_text(yaml.safe_dump(MADE_UP))
    path, out, ran = write_table(tmp_path, study), tmp_path / "out", []

    def replayed(table: SearchTable, run: Run) -> Any:
        ran.append((run.sampler, run.seed))
        return replay_search(table, run)

    def compare(samplers: list[str], seeds: int) -> bench_search.Compared:
        ran.clear()
        return compare_searches(
            [str(path)], samplers=samplers, rules=["none"], workers=[1], seeds=seeds, trials=6,
            out=out, study=str(file),
        )  # fmt: skip

    monkeypatch.setattr(bench_search, "replay_search", replayed)
    compare(["random"], 2)
    assert ran == [("random", 1), ("random", 2)]
    both = compare(["stratified_random", "random"], 2)
    assert ran == [("stratified_random", 1), ("stratified_random", 2)]
    again = compare(["stratified_random", "random"], 2)
    assert ran == []
    groups = again.groups("made")
    assert list(groups) == ["stratified_random", "random"] and list(groups["random"]) == [1, 2]
    assert groups["random"][2][-1].share == pytest.approx(
        both.groups("made")["random"][2][-1].share, abs=1e-6
    )
    with (out / "search.csv").open(newline="") as results:
        rows = list(csv.DictReader(results))
    assert len(rows) == 2 * 2 * 6 and {row["of_trials"] for row in rows} == {"6"}
    assert (out / "search.png").stat().st_size and (out / "search.svg").stat().st_size
    command = ["bench", "search", str(path), "--study", str(file), "--out", str(out)]
    command += ["--sampler=stratified_random", "--sampler=random", "--seeds=2", "--trials=6"]
    monkeypatch.setattr(console, "width", 120)  # which other tests may have narrowed
    shown = invoke(*command)
    assert ran == []
    assert "made: 27 plans, 2 searches of each kind; hypervolume up to" in shown
    assert "stratified_random less this" in shown and "not reached" not in shown
    write_table(tmp_path, study, noise=0.1)  # another state of the table
    compare(["random"], 1)
    assert ran == [("random", 1)]


class EveryOther:
    """Takes plans as the table lists them, and stops every other one after its first validation."""

    def __init__(self, table: SearchTable, seed: int) -> None:
        self.waiting = list(table.plans)
        self.seen: dict[str, list[int]] = {}

    def ask(self) -> str:
        return self.waiting.pop(0)

    def goes_on(self, plan: str, validations: int, loss: float, costs: Sequence[float]) -> bool:
        self.seen.setdefault(plan, []).append(validations)
        return list(self.seen).index(plan) % 2 == 1

    def tell(self, plan: str, loss: float, costs: Sequence[float]) -> None:
        pass


def test_a_peer_that_stops_trials_spends_less_and_keeps_the_baseline(
    table: SearchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[EveryOther] = []

    def make(table: SearchTable, seed: int) -> EveryOther:
        made.append(EveryOther(table, seed))
        return made[-1]

    monkeypatch.setattr(peers, "PEERS", {"every_other": ((), make)})
    trials = replay_peer(table, run_of("every_other", trials=27)).trials
    assert sorted(trial.plan for trial in trials) == sorted(table.plans)
    assert trials[0].plan == table.baseline.dumps() and trials[0].is_finished
    assert [trial.is_finished for trial in trials[1:]] == [n % 2 == 0 for n in range(26)]
    clock = 0.0
    for trial in trials:
        points = table.curves[trial.plan, table.seed].points
        assert made[0].seen[trial.plan][0] == 1
        last = points[-1] if trial.is_finished else points[0]
        clock += last.seconds
        assert (trial.updates, trial.time) == (last.num_updates, pytest.approx(clock))
    finished = [trial.plan for trial in trials if trial.is_finished]
    assert steps_of(table, trials)[-1].share == share_of(table, finished) < 1


def test_moasha_draws_plans_of_the_table_and_stops_some(table: SearchTable) -> None:
    pytest.importorskip("syne_tune")
    first, again = (replay_peer(table, run_of("moasha", trials=27)).trials for _ in range(2))
    assert first == again and len({trial.plan for trial in first}) == 27
    assert 1 < sum(trial.is_finished for trial in first) < 27
    other = replay_peer(table, run_of("moasha", trials=27, seed=2)).trials
    assert [t.plan for t in other] != [t.plan for t in first]


def test_refuses_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {"workers": [1], "seeds": 1, "trials": 3, "out": tmp_path / "out"}
    for changes, message in (
        ({"samplers": ["tpi"], "rules": ["none"]}, 'no sampler "tpi"; did you mean'),
        ({"samplers": ["tpe"], "rules": ["asha"]}, 'no rule "asha"; there are none, halving'),
        ({"samplers": ["tpe"], "rules": ["none"]}, 'no shipped table "mine.csv"; there are demo'),
    ):
        with pytest.raises(UsageError, match=message):
            compare_searches(["mine.csv"], **common, **changes)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"botorch needs .*: pip install 'nas-attn\[peers\]'"):
        compare_searches(["demo"], **common, samplers=["botorch"], rules=["none"])
    assert not (tmp_path / "out").exists()
