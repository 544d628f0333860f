"""Reports: complete, right, and harmless whatever a study is called."""

from __future__ import annotations

import html.parser
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from nas_attn.analysis.agreement import agreement_of
from nas_attn.analysis.confirmation import confirmation_rows
from nas_attn.analysis.trials import Trials
from nas_attn.curves import recorded_curves
from nas_attn.engine.sensitivity import Prediction
from nas_attn.engine.trial_record import SIZE, parse_trial
from nas_attn.pareto import non_dominated
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.report import summary_text, write_report
from nas_attn.report.confirming import confirmation_advice
from tests.helpers.fakes import OBJECTIVES
from tests.helpers.predicted import findings
from tests.helpers.reports import HOSTILE, context
from tests.helpers.searched import MISLEADING, compared, confirmed_trials, searched_trials


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return searched_trials(tmp_path / "run", error=lambda job: HOSTILE if job.number == 4 else None)


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


def test_a_confirmation_has_its_table(trials: Trials, tmp_path: Path) -> None:
    confirmed = confirmed_trials(trials)
    about = replace(context(), confirmed=confirmation_rows(confirmed, {}))
    page = write_report(confirmed, about, tmp_path)
    text = page.read_text()
    assert "with 3 seeds that the search did not use, and evaluated on\nthe test set" in text
    assert "no clear difference" in text and "<td>noise</td>" not in text
    table = pd.read_csv(tmp_path / "confirmed.csv")
    assert text.count('<td rowspan="2" title=') == 3, "each plan stands once"
    assert list(table["score"]) == ["validation loss", "test bleu"] * 3
    assert list(table["baseline"]) == [False] * 4 + [True] * 2


def test_a_confirmation_reaches_the_first_screen(trials: Trials, tmp_path: Path) -> None:
    confirmed = confirmed_trials(trials)
    numbers = {trial.plan: trial.number for trial in trials if trial.plan is not None}
    rows = confirmation_rows(confirmed, numbers)
    about = replace(context(), study=("my.yaml",), confirmed=rows)
    page = write_report(trials, about, tmp_path)
    text = " ".join(page.read_text().split())
    # Trial 1 is worse by 0.1 with every seed, so sure; trial 2 has the baseline's very losses.
    assert ">2</button> is the smallest model not clearly worse" in text
    assert "loss +0.0000 (95&nbsp;% interval +0.0000 to +0.0000)" in text
    assert "Confirmed by 3 seeds" in text and "Not confirmed yet" not in text
    data = page_data(page)
    assert data["answer"] == 2
    assert data["confirmed"]["1"]["change"] == pytest.approx(0.1)
    replayed = replace(about, confirmed=[row for row in rows if "test" not in row["score"]])
    assert "the test set" not in write_report(trials, replayed, tmp_path).read_text()
    # Without a confirmation, and with one of plans alone that no trial of the search has.
    for others in ([], confirmation_rows(confirmed, {})):
        unconfirmed = write_report(trials, replace(about, confirmed=others), tmp_path).read_text()
        assert '<code id="confirm-command">nas-attn confirm my.yaml ' in unconfirmed
        assert "<p>Not confirmed yet" in unconfirmed


def test_a_front_of_all_trials_is_explained(trials: Trials, tmp_path: Path) -> None:
    about = replace(context(), settings={"search": {"strategy": "sensitivity"}})
    said = "points of the predicted front, so all trials are on the front"
    whole = Trials(trials.front, trials.objectives)
    assert said in " ".join(write_report(whole, about, tmp_path).read_text().split())
    assert said not in " ".join(write_report(whole, context(), tmp_path).read_text().split())


def test_a_confirmation_is_recommended_with_its_price(trials: Trials) -> None:
    timed = Trials([replace(trial, seconds=60.0) for trial in trials], trials.objectives)
    about = replace(context(), study=("my.yaml", "--set", "execution.workers=2"))
    answer = next(trial for trial in timed.front if not trial.is_baseline)
    found = confirmation_advice(timed, answer, about)
    number, points = answer.number, 1 + sum(not trial.is_baseline for trial in timed.front)
    command = f"nas-attn confirm my.yaml --set execution.workers=2 --trial {number} --seeds 3"
    assert found["command"] == command
    assert found["price"] == "6 trainings, about 6 min one after another"
    assert found["whole"].startswith(f"{3 * points} trainings, about {3 * points} min")
    whole = confirmation_advice(timed, None, about)
    assert (whole["price"], whole["whole"]) == (found["whole"], "")
    assert "--trial" not in whole["command"]
    assert confirmation_advice(timed, answer, context()) == {"command": ""}


def test_replayed_trainings_offer_no_command_and_no_folder(trials: Trials, tmp_path: Path) -> None:
    for settings, offers in (({"replay": {}}, False), ({}, True)):
        data = page_data(write_report(trials, replace(context(), settings=settings), tmp_path))
        assert any(data["commands"].values()) is offers
        assert any(trial["folder"] for trial in data["trials"]) is offers


def test_predicted_plans_join_the_budget_box(trials: Trials, tmp_path: Path) -> None:
    baseline, known = trials[0], next(t for t in trials.trained if not t.is_baseline)
    assert baseline.cost is not None and known.plan is not None
    plans = [AttentionPlan.uniform(AttentionChoice.of("reduced_key", key_dim=n)) for n in (4, 8)]
    costs = [int(baseline.cost * share) for share in (0.6, 0.7, 0.8, 1.0)]
    front = [
        Prediction(plan=plan, cost=cost, change=change, error=0.0)
        for plan, cost, change in zip(
            [*plans, known.plan, baseline.plan], costs, (0.4, 0.2, 0.1, 0.0), strict=True
        )
        if plan is not None
    ]
    found = findings(front=front, axis="total", base_cost=baseline.cost)
    about = replace(context(), findings=found, convert=("my run/best.pt", "--calibrate", "data"))
    page = write_report(trials, about, tmp_path)
    predicted = page_data(page)["predicted"]
    points = predicted["points"]
    assert [point["cost"] for point in points] == costs[:3], "all but the baseline"
    assert [point["trial"] for point in points] == [None, None, known.number]
    # Measured changes are 1.5 of what was predicted, and so predictions are corrected.
    assert points[0]["loss"] == pytest.approx((baseline.loss or 0.0) + 0.6)
    assert predicted["convert"] == "nas-attn convert 'my run/best.pt' --calibrate data"
    assert AttentionPlan.parse(shlex.split(points[0]["plan"])[0]) == plans[0]
    assert "predicted, not trained" in page.read_text()
    tuned = findings(outcomes=7, front=front, axis="total", base_cost=baseline.cost)
    data = page_data(write_report(trials, replace(about, findings=tuned), tmp_path))
    assert data["predicted"]["remaining"] == pytest.approx(0.2)
    assert data["predicted"]["points"][0]["loss"] == pytest.approx((baseline.loss or 0.0) + 0.12)
    for no_guide in (replace(found, validity=None), replace(found, axis="attention")):
        data = page_data(write_report(trials, replace(about, findings=no_guide), tmp_path))
        assert data["predicted"]["points"] == []


def test_the_facts_count_every_trial_once(trials: Trials, tmp_path: Path) -> None:
    done = next(trial for trial in trials.trained if not trial.is_baseline)
    failed = next(trial for trial in trials if trial.state.name == "FAIL")
    more = [
        replace(done, number=100, duplicate_of=done.number),
        replace(failed, number=101, is_superseded=True),
        replace(done, number=102, state=optuna.trial.TrialState.RUNNING, loss=None, point=None),
        *(replace(done, number=200 + n) for n in range(1000)),
    ]
    whole = Trials([*trials, *more], OBJECTIVES)
    text = write_report(whole, context(), tmp_path).read_text()
    facts = {
        words: int(number.replace(",", ""))
        for number, words in re.findall(r"<li><b>([\d,]+)</b>([^<]+)</li>", text)
    }
    states = [
        facts[name] for name in ("trials trained", "repeated", "withdrawn", "failed", "running")
    ]
    assert states[1:] == [1, 1, 1, 1] and states[0] > 1000
    assert sum(states) == len(whole)
    assert f"<b>{states[0]:,}</b>trials trained" in text
    body = text[: text.index('<script type="application/json"')]
    assert re.search("\N{MINUS SIGN}[0-9.]+\N{NO-BREAK SPACE}%<", body)
    assert not re.search(">-[0-9]", body), "a hyphen is no minus"


def test_a_search_with_the_baseline_alone_says_so(trials: Trials, tmp_path: Path) -> None:
    alone = Trials(trials[:1], OBJECTIVES)
    page = write_report(alone, replace(context(), study=("my.yaml",)), tmp_path)
    text = page.read_text()
    assert "No model smaller than the baseline is trained yet" in text
    assert "nas-attn confirm" not in text and "Every smaller" not in text


def test_failures_are_grouped_by_reason(trials: Trials, tmp_path: Path) -> None:
    failed = next(trial for trial in trials if trial.state.name == "FAIL")
    others = [replace(failed, number=100 + n) for n in range(2)]
    text = write_report(Trials([*trials, *others], OBJECTIVES), context(), tmp_path).read_text()
    assert text.count('<td class="number">3</td>') == 1
    assert 'data-trial="101"' in text


def test_an_agreement_has_its_table(trials: Trials, tmp_path: Path) -> None:
    agreement = agreement_of(*compared(trials, *MISLEADING))
    about = replace(context(), fine_tuning=(3, 3), agreement=agreement)
    page = write_report(trials, about, tmp_path)
    assert "misleads here" in page.read_text()
    assert len(pd.read_csv(page.parent / "agreement.csv")) == 9


@pytest.mark.parametrize(
    ("fine_tuning", "said"),
    [
        ((62, 62), "with the same 62 updates of fine-tuning. All"),
        ((620, 1240), "with 620 to 1,240 updates of fine-tuning, the more of them the more of"),
    ],
)
def test_how_long_the_fine_tuning_is(
    trials: Trials, tmp_path: Path, fine_tuning: tuple[int, int], said: str
) -> None:
    page = write_report(trials, replace(context(), fine_tuning=fine_tuning), tmp_path)
    for text in (page.read_text(), (tmp_path / "summary.md").read_text()):
        assert said in " ".join(text.split())


def test_that_converted_modules_were_distilled_is_said(trials: Trials, tmp_path: Path) -> None:
    for distil in (False, True):
        about = replace(context(), fine_tuning=(3, 3), settings={"warm_start": {"distil": distil}})
        write_report(trials, about, tmp_path)
        assert ("trained alone first" in (tmp_path / "summary.md").read_text()) is distil


def test_a_second_cost_has_its_column_and_its_panel(trials: Trials, tmp_path: Path) -> None:
    both = replace(OBJECTIVES, costs=("total", "decoding_seconds"))
    timed = [
        replace(t, costs={**t.costs, "decoding_seconds": 0.0123 * (t.number + 1)}) for t in trials
    ]
    page = write_report(Trials(timed, both), context(), tmp_path)
    assert "| decoding seconds per sentence |" in (tmp_path / "summary.md").read_text()
    assert "| 0.0123 |" in (tmp_path / "summary.md").read_text()
    text = page.read_text()
    assert '"decoding seconds per sentence">0.0123</td>' in text
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
