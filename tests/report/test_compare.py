"""Searches compared: right volumes, the same intervals every time, and no foreign objectives."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from nas_attn.analysis.bootstrap import volume_of
from nas_attn.analysis.comparison import Comparison, ComparisonRow, compare
from nas_attn.analysis.searches import (
    ReferencePoint,
    RunSummary,
    early_reference_of,
    parse_reference,
    read_searched,
)
from nas_attn.analysis.trials import Trials
from nas_attn.cli.main import app
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.store import SETTINGS
from nas_attn.engine.trial_record import (
    BASELINE,
    COMMANDS,
    COSTS,
    FOLDER,
    LOSSES,
    SECONDS,
    STARTS,
    UPDATES,
    TrialRecord,
    parse_trial,
)
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.pareto import hypervolume
from nas_attn.report.compare_page import render_comparison
from nas_attn.report.comparison import (
    comparison_text,
    interval_text,
    reference_text,
    write_comparison,
)
from nas_attn.study.recorded import open_run_folder
from tests.helpers.fakes import FakeExecutor, make_loop

OBJECTIVES = Objectives(metric="nll_loss", maximise=False, costs=("total",), limits={})
BLEU = Objectives(metric="bleu", maximise=True, costs=("total",), limits={})
HOSTILE = "_<script>|`$x$`"


def trial(
    number: int, cost: int, *losses: float, objectives: Objectives = OBJECTIVES, **more: Any
) -> TrialRecord:
    values = [sum(losses) / len(losses), float(cost)]
    attributes = {COSTS: {"total": cost}, LOSSES: losses, UPDATES: 10, SECONDS: 2.0, **more}
    if number == 0:
        attributes[BASELINE] = True
    made = optuna.trial.create_trial(
        values=values, user_attrs=attributes, intermediate_values={9: 2.5, 3: 6.0}
    )
    made.number = number
    return parse_trial(made, objectives)


def searched(
    name: str, trials: Sequence[TrialRecord], objectives: Objectives = OBJECTIVES, **settings: Any
) -> RunSummary:
    return RunSummary(
        name=name,
        trials=Trials(trials, objectives),
        settings=settings,
        folder=Path("runs") / name,
    )


def seeded(name: str, shift: float = 0.0, noise: float = 0.05, seeds: int = 3) -> RunSummary:
    draw = random.Random(name)
    costs = [1000, *(100 * n for n in range(1, 10))]
    return searched(
        name,
        [
            trial(n, c, *(2 + 200 / c + shift + draw.gauss(0, noise) for _ in range(seeds)))
            for n, c in enumerate(costs)
        ],
    )


def interval(row: ComparisonRow) -> tuple[float, float]:
    assert row.ratio_low is not None
    assert row.ratio_high is not None
    return row.ratio_low, row.ratio_high


def test_volumes_are_those_of_the_general_function() -> None:
    draw = random.Random(1)
    for _ in range(50):
        points = [(draw.randint(1, 12), draw.randint(1, 12)) for _ in range(draw.randint(1, 9))]
        costs, losses = np.array(sorted(points), dtype=float).T
        assert volume_of(costs, losses, (9.0, 8.0)) == pytest.approx(hypervolume(points, (9, 8)))


def test_what_a_comparison_says() -> None:
    first = searched("first", [trial(0, 10, 3.0), trial(1, 4, 4.0), trial(2, 8, 5.0)])
    stopped = replace(trial(3, 2, 1.0), state=TrialState.PRUNED, loss=None, point=None)
    second = searched("second", [trial(0, 10, 3.0), trial(1, 6, 2.0), stopped])
    found = compare([first, second], "first")
    assert found.reference.point(OBJECTIVES) == (10, 6.0)
    assert "cost and first validation of the baseline of first" in reference_text(found)
    common = compare([first, second])
    # On the common front are 4 at 4.0 and 6 at 2.0.
    assert common.reference.point(OBJECTIVES) == (10, 4.2)
    assert "cost of the baseline of first, and the worst loss on the common" in reference_text(
        common
    )
    one, two = found.rows
    assert (one.trials_trained, one.front_points, one.updates, one.seconds) == (3, 2, 30, 6.0)
    assert (two.trials_trained, two.front_points, two.updates) == (2, 1, 30)
    assert (one.hypervolume, two.hypervolume) == (6 * 2, 4 * 4)
    assert (one.ratio, one.ratio_low, two.ratio) == (1.0, None, pytest.approx(16 / 12))
    assert found.interval == "trials"
    assert "noise of training is unknown" in interval_text(found)


def test_higher_is_better_too() -> None:
    def make(name: str, *points: tuple[int, float]) -> RunSummary:
        trials = [trial(n, c, loss, objectives=BLEU) for n, (c, loss) in enumerate(points)]
        return searched(name, trials, BLEU)

    reference = ReferencePoint(cost=10.0, loss=1.0, origin="given")
    found = compare([make("a", (10, 30.0), (5, 21.0)), make("b", (10, 30.0), (5, 11.0))], reference)
    assert [row.hypervolume for row in found.rows] == [100.0, 50.0]


def test_intervals_are_the_same_every_time() -> None:
    one, two, three = seeded("one"), seeded("two", 0.1), seeded("three", 0.5)
    found, again = compare([one, two]), compare([one, two, three])
    assert found.interval == again.interval == "seeds"
    assert found.rows[1] == again.rows[1]
    assert interval(compare([one, two], seed=2).rows[1]) != interval(found.rows[1])
    low, high = interval(found.rows[1])
    assert low < (found.rows[1].ratio or 0) < high < 1.5
    far_low, far_high = interval(again.rows[2])
    assert far_low < (again.rows[2].ratio or 0) < far_high < 1


def test_more_noise_widens_the_interval() -> None:
    widths = []
    for noise in (0.0, 0.01, 0.1):
        found = compare([seeded("one", noise=noise), seeded("two", 0.1, noise=noise)])
        low, high = interval(found.rows[1])
        widths.append(high - low)
    assert widths[0] == pytest.approx(0.0, abs=1e-12)
    assert 0.001 < widths[1] < widths[2] / 5


def test_an_interval_is_for_the_ratio_without_noise() -> None:
    """It covers that in nineteen of twenty cases, and one more training's ratio in fewer."""

    def ratio(one: RunSummary, two: RunSummary) -> float:
        return compare([one, two], corner, replicates=1).rows[1].ratio or 0.0

    corner = ReferencePoint(cost=1000.0, loss=4.5, origin="given")
    truth = ratio(seeded("true", noise=0.0), seeded("also true", 0.1, noise=0.0))
    rounds, covered, again = 120, 0, 0
    for turn in range(rounds):
        found = compare([seeded(f"a{turn}"), seeded(f"b{turn}", 0.1)], corner, replicates=200)
        low, high = interval(found.rows[1])
        covered += low <= truth <= high
        again += low <= ratio(seeded(f"c{turn}"), seeded(f"d{turn}", 0.1)) <= high
    assert covered >= 0.88 * rounds
    assert again < covered
    assert "noise of its own and falls outside more often" in interval_text(found)


def test_single_trials_are_drawn_where_one_search_has_one_seed() -> None:
    found = compare([seeded("one"), seeded("two", 0.1, seeds=1)])
    assert found.interval == "trials"
    low, high = interval(found.rows[1])
    assert low < (found.rows[1].ratio or 0) < high
    few = compare([searched("few", [trial(0, 10, 3.0), trial(1, 5, 3.0), trial(2, 20, 2.0)]),
                   seeded("two")])  # fmt: skip
    assert few.rows[1].ratio_low is None  # with trial 2 alone nothing is left to compare with
    assert any("few has too few points" in note for note in few.notes)


def test_what_is_refused() -> None:
    one = seeded("one")
    with pytest.raises(UsageError, match="two studies or more"):
        compare([one])
    with pytest.raises(UsageError, match="one is given twice"):
        compare([one, one])
    with pytest.raises(UsageError, match="empty has no trained trial yet"):
        compare([one, searched("empty", [])])
    other = replace(OBJECTIVES, metric="ppl")
    with pytest.raises(UsageError, match="two weighs ppl against total, but one weighs nll_loss"):
        compare([one, searched("two", one.trials, other)])
    other = replace(OBJECTIVES, costs=("attention", "total"))
    with pytest.raises(UsageError, match="two weighs nll_loss against attention"):
        compare([one, searched("two", one.trials, other)])
    copy = replace(one, folder=Path("elsewhere") / "one")
    assert [row.study for row in compare([one, copy]).rows] == ["runs/one", "elsewhere/one"]
    compare([one, searched("two", one.trials, replace(OBJECTIVES, costs=("total", "flops")))])


def test_references() -> None:
    for text, objectives, point in (
        ("20M,8.5", OBJECTIVES, (2e7, 8.5)),
        ("20,1.5", BLEU, (20, -1.5)),
    ):
        parsed = parse_reference(text)
        assert isinstance(parsed, ReferencePoint)
        assert parsed.point(objectives) == point
    assert parse_reference("first") == "first"
    for text in ("20M", "20M,x", "20M,nan", "20M,1,2"):
        with pytest.raises(UsageError, match="is not COST,LOSS"):
            parse_reference(text)
    with pytest.raises(UsageError, match=r"--reference: 'x' is no amount"):
        parse_reference("x,3")
    one = seeded("one")
    with pytest.raises(UsageError, match=r"baseline of one is not trained: .*--reference"):
        compare([replace(one, trials=one.trials[1:]), seeded("two")])
    found = compare([one, seeded("two")], parse_reference("50,9"))
    assert found.rows[1].ratio is None
    assert any("give a weaker one with --reference" in note for note in found.notes)
    assert "given with --reference" in reference_text(found)


def test_the_reference_of_fine_tuned_searches_comes_before_the_fine_tuning(tmp_path: Path) -> None:
    more = {COMMANDS: [["fairseq-train", "--seed", "7"]], STARTS: [["fairseq-train"]]}
    baseline = trial(0, 10, 3.0, **more, **{FOLDER: str(tmp_path / "trials" / "00000")})
    search = searched("warm", [baseline])
    with pytest.raises(UsageError, match="first validation of warm's baseline is gone"):
        early_reference_of(search)
    report = tmp_path / "trials" / "00000" / "seed-7" / "start" / "report.jsonl"
    report.parent.mkdir(parents=True)
    lines = [{"num_updates": n, "metrics": {"nll_loss": 9.0 - n}} for n in (2, 1)]
    report.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert early_reference_of(search).loss == 8.0


def test_files_are_written_and_names_escaped(tmp_path: Path) -> None:
    two = replace(seeded("two"), name=HOSTILE, settings={"data": {"folder": "other"}})
    found: Comparison = compare([seeded("one"), two])
    write_comparison(found, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"compare.{ending}" for ending in ("html", "csv", "md", "png", "svg")}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<script>|" not in page and "&lt;script&gt;|" in page
    assert "<!-- baselines -->" in (tmp_path / "out" / "compare.svg").read_text()
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<script>" not in (tmp_path / "out" / "compare.svg").read_text()
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["study"] for row in rows] == ["one", HOSTILE]
    assert float(rows[1]["ratio_low"]) == found.rows[1].ratio_low
    assert rows[0]["interval_by"] == "seeds"
    text = comparison_text(found)
    assert r"| _&lt;script&gt;\|\`\$x\$\` | 10 |" in text
    assert "<script>" not in text
    assert "other settings than one (data)" in text
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_comparison(found, tmp_path / "file")


def test_the_page_marks_every_baseline_and_says_how_sure_it_is() -> None:
    better = seeded("better", -0.5)
    no_baseline = searched("none", seeded("none", seeds=1).trials[1:])
    page = render_comparison(compare([seeded("one"), better, no_baseline]), "R.", "I.")
    text = " ".join(page.split())
    assert "better has more hypervolume than one: ratio 1." in text
    assert text.count('<span class="tag base">baseline</span>') == 2
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    studies = json.loads(found[1])["studies"]
    assert [study["name"] for study in studies] == ["one", "better", "none"]
    baselines = [study["baseline"] and study["baseline"]["cost"] for study in studies]
    assert baselines == [1000, 1000, None]
    assert all(point["noise"] > 0 for point in studies[0]["front"])
    assert all(point["noise"] is None for point in studies[2]["front"])


def test_run_folders_from_the_command(tmp_path: Path) -> None:
    for name, trials in (("first", 8), ("second", 12)):
        loop = make_loop(tmp_path / name, trials=trials)
        FakeExecutor().run(loop)
        settings = {"objectives": {"loss": "loss", "costs": ["total"]}}
        loop.store.set_metadata(SETTINGS, settings)
    store = open_run_folder(tmp_path / "second")
    assert store.name == "fake"
    assert len(read_searched(store, tmp_path / "second").trained) == 12

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    runs, out = ["--runs", str(tmp_path)], tmp_path / "out"
    text = run(str(tmp_path / "first"), "second", *runs, "--out", str(out))
    assert re.search(r"first +8 +\d+ .* 1\.000", text)
    assert re.search(r"second +12 +\d+ .* [\d.]+ \[[\d.]+, [\d.]+\]", text)
    assert (out / "compare.md").is_file()
    with pytest.raises(UsageError, match="is no run folder of a search"):
        run(str(tmp_path / "first"), str(out), *runs)
    with pytest.raises(NasAttnError, match='no study file or shipped study named "third"'):
        run(str(tmp_path / "first"), "third", *runs)
    with pytest.raises(UsageError, match="first is given twice"):
        run("first", str(tmp_path / "first"), *runs)
