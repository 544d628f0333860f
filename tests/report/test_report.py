"""Reports: complete, right, and harmless whatever a study is called."""

from __future__ import annotations

import html.parser
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from nas_attn.analysis.agreement import agreement_of, spread_evenly
from nas_attn.analysis.confirmation import confirmation_rows
from nas_attn.analysis.noise import LEAST_DEGREES, Noise, undecided
from nas_attn.analysis.trials import Trials
from nas_attn.curves import recorded_curves
from nas_attn.engine.trial_record import SIZE, TrialRecord, parse_trial
from nas_attn.pareto import non_dominated
from nas_attn.report import summary_text, write_report
from tests.helpers.fakes import OBJECTIVES, FakeExecutor, make_loop
from tests.helpers.reports import HOSTILE, context


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    loop = make_loop(tmp_path / "run", trials=14)
    executor = FakeExecutor(error=lambda job: HOSTILE if job.number == 4 else None)
    executor.run(loop)
    return Trials(loop.store.trials(), OBJECTIVES)


class Outline(html.parser.HTMLParser):
    """Scripts with their text, and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data = ""
        self.fetched: list[str] = []
        self._in_script = self._in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self._in_data = named.get("type") == "application/json"
        self._in_script = tag == "script" and not self._in_data
        addresses = [named.get("src"), named.get("href") if tag == "link" else None]
        self.fetched += [a for a in addresses if a and not a.startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
        elif self._in_data:
            self.data += data


def page_data(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    outline = Outline()
    outline.feed(page.read_text(encoding="utf-8"))
    data: dict[str, Any] = json.loads(outline.data)
    return data


def test_everything_is_written(trials: Trials, tmp_path: Path) -> None:
    page = write_report(trials, context(), tmp_path / "report")
    names = {path.name for path in page.parent.iterdir()}
    written = "index.html front.csv trials.csv curves.csv front.json front.png front.svg summary.md"
    written += " front.tex"
    assert names == set(written.split())
    table = pd.read_csv(page.parent / "trials.csv")
    assert len(table) == len(trials)
    done = [t for t in trials if t.is_trained]
    best = non_dominated([(t.cost, t.loss) for t in done])
    assert set(table[table["on_front"]]["trial"]) == {done[i].number for i in best}
    front = json.loads((page.parent / "front.json").read_text())
    assert [p["trial"] for p in front["front"]] == sorted(
        (done[i].number for i in best), key=lambda number: trials[number].cost
    )
    assert (page.parent / "front.png").read_bytes().startswith(b"\x89PNG")
    summary = (page.parent / "summary.md").read_text()
    assert "(baseline" in summary
    for trial in done:
        assert str(trial.plan) in page.read_text()


def test_the_page_runs_nothing_from_outside(trials: Trials, tmp_path: Path) -> None:
    page = write_report(trials, context(name=HOSTILE), tmp_path / "report")
    outline = Outline()
    outline.feed(page.read_text(encoding="utf-8"))
    assert outline.fetched == []
    assert not any("alert(1)" in script for script in outline.scripts)
    assert not set("<>&") & set(outline.data), "no data can end the element that holds it"
    assert json.loads(outline.data)["trials"][4]["reason"] == HOSTILE
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text


def test_summaries_show_texts_as_they_are(trials: Trials) -> None:
    odd = Trials(trials, replace(OBJECTIVES, metric="a|b"))
    text = summary_text(odd, context(name=HOSTILE))
    assert "<script>" not in text
    columns = {line.replace("\\|", "").count("|") for line in text.splitlines() if "|" in line[:1]}
    assert len(columns) == 1, "no cell is cut in two"


def test_the_baseline_has_its_row(trials: Trials) -> None:
    table = trials.front_frame()
    (row,) = table[table["baseline"]].to_dict("records")
    assert row["trial"] == 0
    assert row["loss_change"] == 0
    assert row["cost_change"] == 0
    assert list(table["cost"]) == sorted(table["cost"])


def test_noise_is_of_trials_of_such_a_loss(trials: Trials) -> None:
    assert Noise.of(trials) is None
    calm = [seeded(trials[n], 100 - n, 3 + n / 10 - 0.01, 3 + n / 10 + 0.01) for n in range(12)]
    wild = [seeded(trials[n], 50 - n, 6 + n / 10 - 0.5, 6 + n / 10 + 0.5) for n in range(12)]
    noise = Noise.of([*wild, *calm, replace(trials[13], losses=())])
    assert noise is not None
    for loss, deviation in ((2.0, 0.01), (3.5, 0.01), (6.5, 0.5), (9.0, 0.5)):
        level = noise.at(loss)
        assert level.error == pytest.approx(deviation)  # a mean of two has sqrt(2 / 2) of it
        assert level.degrees == LEAST_DEGREES
    assert noise.pooled == pytest.approx(((0.01**2 + 0.5**2) / 2) ** 0.5)
    # Student's 97.5 % quantile with 10 degrees of freedom is 2.228.
    assert noise.margin(3.5, 3.4) == pytest.approx(2.228 * 0.01 * 2**0.5, rel=1e-3)
    assert noise.margin(6.5, 6.4) == pytest.approx(50 * noise.margin(3.5, 3.4))
    few = Noise.of(calm[:3])
    assert few is not None
    assert few.at(3.0).degrees == 3, "all that there are"


def test_poor_trials_do_not_blur_good_ones(trials: Trials) -> None:
    """What the noise of poor trials would leave open, that of good ones decides."""
    good = [seeded(trials[n], 100 + n, 3 + n / 10 - 0.01, 3 + n / 10 + 0.01) for n in range(11)]
    poor = [seeded(trials[n], 50 - n, 6 + n / 10 - 0.5, 6 + n / 10 + 0.5) for n in range(11)]
    found = [replace(trial, number=place) for place, trial in enumerate([*good, *poor])]
    noise = Noise.of(found)
    assert noise is not None
    assert 1.96 * 2**0.5 * noise.pooled > 0.1, "pooled, the second best would be left open"
    assert not undecided(found, noise) & set(range(11))


def test_an_empty_study_has_an_empty_table() -> None:
    empty = Trials([], OBJECTIVES)
    assert empty.to_frame().empty
    assert empty.front_frame().empty


def test_effective_parameters_stand_beside_the_objective(trials: Trials, tmp_path: Path) -> None:
    write_report(trials, context(), tmp_path)
    table = pd.read_csv(tmp_path / "trials.csv").dropna(subset=["effective"])
    assert (table["effective_cost"] == table["effective"]).all()  # the objective is the total
    assert (table["effective"] < table["total"]).all()
    baseline = next(trial for trial in trials if trial.is_baseline)
    assert f"| {baseline.effective:,} |" in (tmp_path / "summary.md").read_text()
    assert f">{baseline.effective:,}<" in (tmp_path / "index.html").read_text()


def test_records_from_before_effective_parameters_are_read(trials: Trials, tmp_path: Path) -> None:
    size = {"attention": 1, "non_embedding": 2, "total": 3}
    old = optuna.trial.create_trial(values=[1.0, 3.0], user_attrs={SIZE: size})
    found = parse_trial(old, OBJECTIVES)
    assert (found.cost, found.effective) == (3, None)
    older = Trials([replace(trial, effective=None) for trial in trials], OBJECTIVES)
    page = write_report(older, context(), tmp_path)
    assert page.is_file()


def seeded(trial: TrialRecord, cost: int, *losses: float) -> TrialRecord:
    mean = statistics.fmean(losses)
    return replace(trial, losses=losses, loss=mean, cost=cost, point=(mean, float(cost)))


def test_a_point_dominates_only_beyond_the_noise(trials: Trials) -> None:
    """The standard error of a mean of two is 0.1; with three degrees of freedom, 3.182 is Student's
    97.5 % quantile, so that a difference must exceed 0.45."""
    best = seeded(trials[0], 100, 0.9, 1.1)
    near = seeded(trials[1], 200, 1.0, 1.2)
    far = seeded(trials[2], 200, 1.4, 1.6)
    found = [best, near, far]
    noise = Noise.of(found)
    assert noise is not None
    assert noise.pooled == pytest.approx(0.1)
    assert noise.margin(1.0, 1.5) == pytest.approx(3.182 * 0.1 * 2**0.5, rel=1e-3)
    assert undecided(found, noise) == {near.number}
    assert undecided(found, None) == set()
    table = Trials(found, OBJECTIVES).front_frame()
    assert list(table["within_noise"]) == [False, True]
    assert table["loss_error"].iloc[0] == pytest.approx(0.1)


def test_confirmation_takes_seeds_as_pairs(trials: Trials, tmp_path: Path) -> None:
    baseline = replace(
        seeded(trials[0], 200, 1.0, 2.0, 3.0),
        tests=({"bleu": 20.0}, {"bleu": 21.0}, {"bleu": 22.0}),
    )
    other = replace(
        seeded(trials[1], 100, 1.1, 2.1, 3.1),
        tests=({"bleu": 19.0}, {"bleu": 23.0}, {"bleu": 22.0}),
    )
    third = replace(
        seeded(trials[2], 150, 1.0, 2.0, 3.0),
        tests=({"bleu": 24.0}, {"bleu": 25.1}, {"bleu": 25.9}),
    )
    assert other.plan is not None
    confirmed = Trials([baseline, other, third], OBJECTIVES)
    rows = confirmation_rows(confirmed, {other.plan: 7})
    assert [row["cost"] for row in rows] == [100, 100, 150, 150, 200, 200]
    named = {(row["cost"], row["score"]): row for row in rows}
    loss = named[100, "validation loss"]
    assert loss["trial"] == 7  # in the search; in the confirmation it is trial 1
    assert loss["change"] == pytest.approx(0.1)
    assert loss["interval"] == pytest.approx(0.0, abs=1e-12)
    assert loss["verdict"] == "worse"
    bleu = named[100, "test bleu"]
    assert bleu["mean"] == pytest.approx(64 / 3)
    # Changes -1, 2 and 0; Student's 97.5 % quantile with 2 degrees of freedom is 4.303.
    assert bleu["interval"] == pytest.approx(
        4.303 * statistics.stdev([-1, 2, 0]) / 3**0.5, rel=1e-3
    )
    assert bleu["verdict"] == "noise"
    assert named[150, "test bleu"]["verdict"] == "better"  # BLEU is better when higher
    assert named[200, "test bleu"]["change"] is None

    about = replace(context(), confirmed=rows)
    page = write_report(confirmed, about, tmp_path)
    assert "with 3 seeds that the search did not use" in page.read_text()
    table = pd.read_csv(tmp_path / "confirmed.csv")
    assert list(table["score"]) == ["validation loss", "test bleu"] * 3
    assert list(table["baseline"]) == [False] * 4 + [True] * 2


def compared(
    trials: Trials, warm: list[float], cold: list[float]
) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Trials of a search and of the trainings from nothing, with losses of one's own."""
    done = [trial for trial in trials if trial.is_trained and not trial.is_baseline]
    done.sort(key=lambda trial: trial.cost or 0)
    pairs = list(zip(done, warm, cold, strict=False))
    return (
        [replace(t, is_warm=True, loss=loss, updates=3) for t, loss, _ in pairs],
        [replace(t, loss=loss, updates=30) for t, _, loss in pairs],
    )


def test_rank_agreement(trials: Trials, tmp_path: Path) -> None:
    order = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    agreement = agreement_of(*compared(trials, order, [10 * loss for loss in order]))
    assert agreement is not None
    assert (agreement.ranks.overall, agreement.ranks.terciles, agreement.ranks.is_guide) == (
        1.0,
        (1.0, 1.0, 1.0),
        True,
    )
    assert agreement.updates == 270
    # The smallest third the other way round: 3 of 36 pairs, and nothing left within it.
    agreement = agreement_of(*compared(trials, order, [7.0, 8.0, 9.0, *order[3:]]))
    assert agreement is not None
    assert agreement.ranks.overall == pytest.approx(1 - 2 * 3 / 36)
    assert agreement.ranks.terciles == (-1.0, 1.0, 1.0)
    assert agreement.ranks.is_guide
    # Right about sizes and wrong within all: the search would be no better than a guess.
    swapped = [order[3 * third + place] for third in range(3) for place in (2, 1, 0)]
    agreement = agreement_of(*compared(trials, order, swapped))
    assert agreement is not None
    assert not agreement.ranks.is_guide
    assert "misleads here: tau 0.50 over all, -1.00 within terciles" in agreement.verdict
    page = write_report(
        trials, replace(context(), fine_tuning=3, agreement=agreement), tmp_path / "report"
    )
    assert "misleads here" in page.read_text()
    assert len(pd.read_csv(page.parent / "agreement.csv")) == 9
    # What is not known is not trusted.
    flat = agreement_of(*compared(trials, order, [1.0] * 9))
    assert flat is not None
    assert not flat.ranks.is_guide
    assert agreement_of(*compared(trials, order[:5], order[:5])) is None


def test_compared_trials_are_spread_by_rank(trials: Trials) -> None:
    warm, _ = compared(trials, [1.0] * 9, [1.0] * 9)
    assert [warm.index(trial) for trial in spread_evenly(warm, 5)] == [0, 2, 4, 6, 8]
    assert len(spread_evenly(warm, 20)) == 9
    assert spread_evenly(trials, 5) == []


def test_a_second_cost_has_its_column_and_its_panel(trials: Trials, tmp_path: Path) -> None:
    both = replace(OBJECTIVES, costs=("total", "decoding_seconds"))
    timed = [
        replace(t, costs={**t.costs, "decoding_seconds": 0.0123 * (t.number + 1)}) for t in trials
    ]
    page = write_report(Trials(timed, both), context(), tmp_path)
    assert "| decoding seconds a sentence |" in (tmp_path / "summary.md").read_text()
    assert "| 0.0123 |" in (tmp_path / "summary.md").read_text()
    text = page.read_text()
    assert '<td class="number">0.0123</td>' in text
    data = page_data(page)
    assert [cost["name"] for cost in data["costs"]] == ["total", "decoding_seconds"]
    assert data["trials"][0]["costs"]["decoding_seconds"] == 0.0123
    size = [int.from_bytes((tmp_path / "front.png").read_bytes()[16:20])]
    write_report(trials, context(), tmp_path)
    size.append(int.from_bytes((tmp_path / "front.png").read_bytes()[16:20]))
    assert size[0] > size[1]


def test_trials_that_were_not_trained_say_so(trials: Trials, tmp_path: Path) -> None:
    refused = replace(
        trials[1],
        state=optuna.trial.TrialState.PRUNED,
        folder=None,
        rungs={},
        loss=None,
        point=None,
    )
    page = write_report(Trials([trials[0], refused], OBJECTIVES), context(), tmp_path)
    assert "<b>1</b>over a limit, not trained" in page.read_text()
    assert page_data(page)["trials"][1]["state"] == "over a limit"


def test_recorded_curves_can_be_replayed(trials: Trials, tmp_path: Path) -> None:
    write_report(trials, context(), tmp_path)
    curves = recorded_curves(tmp_path / "curves.csv")
    done = [trial for trial in trials if trial.is_trained]
    assert len(curves) == len(done)
    for trial in done:
        assert trial.plan is not None
        points = curves[trial.plan.dumps(), 1].points
        assert [point.num_updates for point in points] == sorted(trial.curve)
        assert points[-1].loss == pytest.approx(trial.loss)
