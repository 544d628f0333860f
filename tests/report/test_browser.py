"""The page in a browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nas_attn.analysis.agreement import agreement_of, spread_evenly
from nas_attn.analysis.comparison import compare
from nas_attn.analysis.searches import RunSummary
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.analysis.trials import Trials
from nas_attn.engine.sensitivity import Prediction
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.report import ReportContext, write_report
from nas_attn.report.comparison import write_comparison
from tests.helpers.fakes import OBJECTIVES, SHAPES, FakeExecutor, make_loop, make_space
from tests.helpers.paths import ROOT
from tests.helpers.predicted import findings
from tests.helpers.reports import HOSTILE, VERSIONS, context

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium (apt-get install chromium)", allow_module_level=True)

PICTURES = ROOT / "build" / "screenshots"
"""Kept by CI."""
WIDTHS = (1280, 390)


@dataclass
class Visit:
    """A page that is open, and what it did that a page should not do."""

    page: Any
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium has no sandbox for root, as whom CI runs.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    folder = tmp_path_factory.mktemp("run")
    loop = make_loop(folder, make_space("layer"), trials=40)
    FakeExecutor(error=lambda job: HOSTILE if job.number == 4 else None).run(loop)
    return loop.store.trials()


@pytest.fixture(scope="module")
def address(trials: list[TrialRecord], tmp_path_factory: pytest.TempPathFactory) -> str:
    objectives = replace(OBJECTIVES, costs=("total", "cache_bytes"))
    trained = [trial for trial in trials if trial.is_trained]
    warm = [replace(trial, is_warm=not trial.is_baseline) for trial in trained]
    agreement = agreement_of(warm, spread_evenly(warm, 12))
    context = ReportContext(
        name=HOSTILE,
        description=HOSTILE,
        seeds=1,
        settings={"name": HOSTILE, "search": {"sampler": "tpe", "startup_trials": 5}},
        versions=VERSIONS,
        machine="2 CPUs",
        evaluate={},
        agreement=agreement,
        shapes=SHAPES,
        study=("my study.yaml",),
        findings=predicted(trials),
        convert=("best.pt", "--calibrate", HOSTILE),
    )
    collection = Trials(trials, objectives)
    return write_report(collection, context, tmp_path_factory.mktemp("report")).as_uri()


def predicted(trials: list[TrialRecord]) -> SensitivityFindings:
    """Findings with one plan that no trial has, half the size of the baseline."""
    cost = trials[0].cost or 0
    plan = AttentionPlan.uniform(AttentionChoice.of("reduced_key", key_dim=4), tuple(SHAPES))
    point = Prediction(plan=plan, cost=cost // 2, change=0.2, error=0.0)
    return findings(front=[point], axis="total", base_cost=cost)


@pytest.fixture(scope="module")
def comparison(trials: list[TrialRecord], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("compared")
    searches = [
        RunSummary(name=n, trials=Trials(t, OBJECTIVES), settings={}, folder=folder / str(place))
        for place, (n, t) in enumerate(((HOSTILE, trials), ("half", trials[:20])))
    ]
    write_comparison(compare(searches), folder)
    return (folder / "compare.html").as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    yield from visited(browser, address, WIDTHS[0])


def visited(browser: Any, address: str, width: int) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": width, "height": 900})
    seen = Visit(page)
    page.on("console", lambda m: seen.faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: seen.faults.append(str(error)))
    page.on("dialog", lambda dialog: seen.faults.append(dialog.message))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(address)
    yield seen
    page.close()
    assert seen.faults == []


def scroll_through(page: Any) -> None:
    """Come near every chart, so that all are drawn."""
    for chart in filter(lambda chart: chart.is_visible(), page.query_selector_all(".chart")):
        chart.scroll_into_view_if_needed()
        page.wait_for_function("chart => chart.querySelector('.main-svg')", arg=chart)
    page.evaluate("window.scrollTo(0, 0)")


def best_within(trials: list[TrialRecord], budget: int) -> TrialRecord:
    fits = [trial for trial in trials if trial.is_trained and (trial.cost or 0) <= budget]
    return min(fits, key=lambda trial: trial.loss or 0.0)


def test_all_charts_are_drawn_without_faults_or_requests(visit: Visit, address: str) -> None:
    scroll_through(visit.page)
    assert len(visit.page.query_selector_all(".chart .main-svg")) >= 4
    assert [url for url in visit.requests if not url.startswith("data:")] == [address]


def test_a_budget_names_the_best_trial_within_it(visit: Visit, trials: list[TrialRecord]) -> None:
    page = visit.page
    costs = sorted(trial.cost or 0 for trial in trials if trial.is_trained)
    for budget in (costs[0], costs[len(costs) // 2], costs[-1]):
        page.fill("#budget-field", str(budget))
        best = best_within(trials, budget)
        shown = page.inner_text("#budget-answer")
        assert shown.startswith(f"Trial {best.number}: {best.cost:,} ")
        assert f"{best.loss:.4f}" in shown
        export = page.inner_text("#budget-export")
        assert export == (
            f"nas-attn export 'my study.yaml' --trial {best.number} --out trial-{best.number}"
        )
        assert page.locator(f"tr.chosen#front-{best.number}").count() == 1
        assert page.locator("#budget-plan td").count() == 6, "three sites of two layers"
    page.fill("#budget-field", str(costs[0] - 1))
    assert f"No trained model fits {costs[0] - 1:,} " in page.inner_text("#budget-answer")
    assert page.is_hidden("#budget-commands")
    page.fill("#budget-field", "ten")
    assert "Write a number" in page.inner_text("#budget-answer")
    for written in ("0.08M", "80k", "80,000"):
        page.fill("#budget-field", written)
        assert f"Trial {best_within(trials, 80_000).number}: " in page.inner_text("#budget-answer")


def test_a_predicted_plan_is_offered_and_said_to_be_none_of_the_trained(
    visit: Visit, trials: list[TrialRecord]
) -> None:
    page, cost = visit.page, (trials[0].cost or 0) // 2
    page.fill("#budget-field", str(cost))
    box = page.inner_text("#budget-predicted")
    assert "predicted, not trained" in box and f"{cost:,} total parameters" in box
    loss = (trials[0].loss or 0.0) + 1.5 * 0.2
    assert f"loss {loss:.4f} expected after conversion, without training. That is" in box
    assert f"the baseline's {trials[0].loss:.4f} and +0.3000 bits per token." in box
    assert page.locator("#predicted-plan td").count() == 6
    command = shlex.split(page.inner_text("#predicted-command"))
    assert command[:5] == ["nas-attn", "convert", "best.pt", "--calibrate", HOSTILE]
    assert json.loads(command[6])["encoder_self"] == {"scheme": "reduced_key", "key_dim": 4}
    page.fill("#budget-field", str(cost - 1))
    assert page.is_hidden("#budget-predicted")
    page.locator("#chart-front").scroll_into_view_if_needed()
    page.wait_for_selector("#chart-front .main-svg")
    shown = page.evaluate(
        "document.getElementById('chart-front').data.find((t) => t.name.startsWith('predicted'))"
    )
    assert (shown["x"], shown["visible"]) == ([cost], "legendonly")


def test_plans_of_several_schemes_are_told_apart(browser: Any, tmp_path: Path) -> None:
    """By what most of their modules have, and by codes that say what they mean."""
    schemes = {"collaborative": {"shared_dim": [2]}, "reduced_key": {"key_dim": [4]}}
    loop = make_loop(tmp_path / "run", make_space("layer", schemes), trials=20)
    FakeExecutor().run(loop)
    about = replace(context(), shapes=SHAPES)
    mixed = Trials(loop.store.trials(), OBJECTIVES)
    written = write_report(mixed, about, tmp_path / "report")
    for visit in visited(browser, written.as_uri(), WIDTHS[0]):
        page = visit.page
        scroll_through(page)
        shown = "document.getElementById('chart-front').data.filter((t) => t.showlegend !== false)"
        names = f"{shown}.map((trace) => trace.name)"
        assert page.input_value("#front-color") == "most"
        assert {"collaborative", "multi-head baseline"} <= {*page.evaluate(names)}
        assert "several schemes" not in page.evaluate(names)
        page.select_option("#front-color", "order")
        page.wait_for_function(f"{names}.includes('dominated')")
        assert page.evaluate(names).count("front") == 1
        code = page.locator("#all-body abbr").first
        assert (code.inner_text(), code.get_attribute("title")) == ("MH", "multi_head")
        page.click("#all-body [data-trial='0']")
        assert page.locator("#trial-body abbr[title=multi_head]").count() == 3


def test_paper_shows_what_is_folded(visit: Visit) -> None:
    page = visit.page
    folded = "document.querySelectorAll('main details:not([open])').length"
    before = page.evaluate(folded)
    assert before > 1, "the commands of a training, and the settings"
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) == before


@pytest.mark.parametrize("width", WIDTHS)
def test_studies_are_compared_on_a_page(browser: Any, comparison: str, width: int) -> None:
    for seen in visited(browser, comparison, width):
        page = seen.page
        scroll_through(page)
        assert [url for url in seen.requests if not url.startswith("data:")] == [comparison]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = "document.getElementById('chart-compare').data"
        symbols = page.evaluate(f"{drawn}.map((trace) => trace.marker.symbol)")
        assert symbols.count("diamond") == 2, "each baseline is marked"
        page.locator("#chart-compare .legendtoggle").nth(1).click()
        page.wait_for_function(
            f"{drawn}.some((trace) => trace.visible === 'legendonly' && trace.legendgroup === '1')"
        )
        rows = page.locator("#compare-points tr:visible")
        whole = rows.count()
        page.select_option("#compare-study", "1")
        assert 0 < rows.count() < whole
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"compare-{width}.png", full_page=True)
        check_with_axe(page)


def test_the_answer_is_shown_first(visit: Visit, trials: list[TrialRecord]) -> None:
    """With one seed a trial, the smallest model that loses no more than a hundredth."""
    page, baseline = visit.page, trials[0]
    smaller = [t for t in trials if t.is_trained and (t.cost or 0) < (baseline.cost or 0)]
    good = [trial for trial in smaller if (trial.loss or 0) <= 1.01 * (baseline.loss or 0)]
    said = page.inner_text(".verdict")
    assert "Not confirmed yet" in said and "nas-attn confirm 'my study.yaml'" in said
    if good:
        assert f"Trial {min(good, key=lambda t: t.cost or 0).number} is the smallest" in said
    else:
        assert "Every smaller model loses more than 1 %" in said


def test_the_slider_moves_with_the_keyboard(visit: Visit, trials: list[TrialRecord]) -> None:
    page = visit.page
    before = page.inner_text("#budget-answer")
    page.focus("#budget-slider")
    page.keyboard.press("Home")
    assert page.inner_text("#budget-answer") != before
    answers = [page.inner_text("#budget-answer b")]
    for _ in range(int(page.get_attribute("#budget-slider", "max"))):
        page.keyboard.press("ArrowRight")
        answers.append(page.inner_text("#budget-answer b"))
    points = len(Trials(trials, OBJECTIVES).front)
    assert len(set(answers)) == len(answers) == points, "from trial to trial"


def test_hover_shows_the_plan_and_a_click_opens_the_trial(
    visit: Visit, trials: list[TrialRecord]
) -> None:
    page = visit.page
    scroll_through(page)
    page.locator("#chart-front").scroll_into_view_if_needed()
    baseline = page.locator("#chart-front .scatterlayer .trace").last.locator(".points path")
    place = baseline.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2, steps=4)
    page.wait_for_selector("#chart-front .hoverlayer text")
    assert "trial 0" in page.text_content("#chart-front .hoverlayer")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("#trial-title") == "Trial 0 (baseline)"
    assert str(trials[0].plan) in page.inner_text("#trial-body")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_trial_has_an_address_and_neighbours(visit: Visit, trials: list[TrialRecord]) -> None:
    page = visit.page
    page.evaluate("location.hash = '#trial-5'")
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("#trial-title") == "Trial 5"
    assert page.evaluate("document.getElementById('trial').scrollTop") == 0
    page.click("#trial-next")
    assert page.inner_text("#trial-title") == "Trial 6"
    assert page.url.endswith("#trial-6")
    page.fill("#trial-other", "0")
    differing = page.locator("#trial-body tr.differs").all_inner_texts()
    assert any(
        f"{trials[0].cost:,}" in text and f"{trials[6].cost:,}" in text for text in differing
    )
    page.mouse.click(5, 5)
    assert page.locator("dialog[open]").count() == 0, "a click outside closes it"
    page.wait_for_function("!location.href.includes('#')")  # the event of closing comes later


def test_commands_are_copied_without_a_clipboard(visit: Visit) -> None:
    """As over plain http from another machine."""
    page = visit.page
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate(
        "document.addEventListener('copy', () => { window.taken = String(getSelection()) })"
    )
    page.click("[data-copy=budget-export]")
    page.wait_for_selector("[data-copy=budget-export]:text('copied')")
    assert page.evaluate("window.taken") == page.inner_text("#budget-export")


def test_a_box_on_the_chart_selects_rows_of_the_table(visit: Visit) -> None:
    page = visit.page
    page.locator("#chart-front").scroll_into_view_if_needed()
    page.wait_for_selector("#chart-front .main-svg")
    page.select_option("#front-drag", "select")
    whole = page.locator("#chart-front .nsewdrag").first.bounding_box()
    page.mouse.move(whole["x"] + 5, whole["y"] + 5)
    page.mouse.down()
    page.mouse.move(whole["x"] + whole["width"] / 2, whole["y"] + whole["height"] - 5, steps=5)
    page.mouse.up()
    page.wait_for_selector("#selected:not([hidden])")
    chosen = int(page.inner_text("#selected span").split()[0])
    assert page.locator("#all-body tr").count() == chosen > 0
    page.click("#selected button")
    assert page.locator("#all-body tr").count() > chosen


def test_axes_are_switched(visit: Visit) -> None:
    page = visit.page
    page.locator("#chart-front").scroll_into_view_if_needed()
    page.wait_for_selector("#chart-front .xtitle")
    assert page.text_content("#chart-front .xtitle") == "total parameters"
    page.select_option("#front-x", "cache_bytes")
    page.wait_for_function(
        "document.querySelector('#chart-front .xtitle').textContent == 'KV-cache bytes per token'"
    )
    page.check("#front-x-log")
    page.wait_for_function("document.getElementById('chart-front').layout.xaxis.type == 'log'")
    page.select_option("#progress-x", "spent")
    assert page.locator("#chart-progress .scatterlayer .trace").count() == 2


def test_charts_can_be_read_and_downloaded(visit: Visit, trials: list[TrialRecord]) -> None:
    page = visit.page
    scroll_through(page)
    lines = page.evaluate("document.getElementById('chart-parallel').data[0]")
    labels = [dimension["label"] for dimension in lines["dimensions"]]
    assert labels[:3] == ["total", "cache_bytes", "loss"], "words would run over one another"
    assert {"C", "MH"} <= {text for d in lines["dimensions"][3:] for text in d["ticktext"]}
    on_front = lines["line"]["color"]
    assert on_front == sorted(on_front) and sum(on_front) == len(Trials(trials, OBJECTIVES).front)
    axis = "document.getElementById('chart-curves').layout.yaxis.range"
    last_third = page.evaluate(axis)
    page.uncheck("#curves-end")
    page.wait_for_function(f"{axis}[1] > {last_third[1]}")
    with page.expect_download() as started:
        page.get_by_label("PNG, front").click()
    assert started.value.suggested_filename == "front.png"


def test_trials_are_found_and_sorted(visit: Visit, trials: list[TrialRecord]) -> None:
    page = visit.page
    page.fill("#find", "failed")
    assert page.locator("#all-body tr").count() == sum(t.state.name == "FAIL" for t in trials)
    page.fill("#find", "trial 17")
    assert page.locator("#all-body tr").count() == 1
    losses = [trial.loss for trial in trials if trial.is_trained and trial.loss is not None]
    page.fill("#find", "state:complete loss<3")
    assert page.locator("#all-body tr").count() == sum(loss < 3 for loss in losses)
    page.fill("#find", "")
    page.click("#all th[data-order=loss] button")
    first = page.locator("#all-body tr").first.inner_text()
    assert f"{min(t.loss for t in trials if t.is_trained):.4f}" in first
    page.click("#all-body tr:first-child button")
    assert page.locator("dialog[open]").count() == 1


def test_hostile_texts_are_shown_and_not_run(visit: Visit) -> None:
    """A script that ran would open a dialog of the browser, which is a fault (see `visited`)."""
    page = visit.page
    assert page.inner_text("h1") == HOSTILE
    page.fill("#find", "failed")
    page.click("#all-body tr:first-child button")
    assert HOSTILE in page.inner_text("#trial-body")
    assert page.locator("main script, #trial script").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_pictures(browser: Any, address: str, width: int) -> None:
    """Nothing sticks out at the side; the pictures are for people to look at."""
    for seen in visited(browser, address, width):
        scroll_through(seen.page)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        table = "document.getElementById('front-table')"
        assert seen.page.evaluate(f"{table}.scrollWidth <= {table}.parentElement.clientWidth")
        PICTURES.mkdir(parents=True, exist_ok=True)
        seen.page.screenshot(path=PICTURES / f"report-{width}.png", full_page=True)


def test_accessibility(visit: Visit) -> None:
    visit.page.emulate_media(color_scheme="light")
    scroll_through(visit.page)
    check_with_axe(visit.page)
    visit.page.emulate_media(color_scheme="dark")
    check_with_axe(visit.page, only=["color-contrast"])  # nothing else hangs on colours


def check_with_axe(page: Any, only: Sequence[str] = ()) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    options = {"runOnly": list(only)} if only else None
    response = axe.Axe().run(page, options=options).response
    assert response["passes"], "nothing was checked"
    found = response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert serious == [], [(v["id"], v["nodes"][0]["html"]) for v in serious]


def test_two_thousand_trials_fit(trials: list[TrialRecord], tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    many = [replace(trials[i % 40], number=i, is_baseline=i == 0) for i in range(2000)]
    context = ReportContext(
        name="many",
        description="",
        seeds=1,
        settings={},
        versions=VERSIONS,
        machine="2 CPUs",
        evaluate={},
        shapes=SHAPES,
    )
    page = write_report(Trials(many, OBJECTIVES), context, tmp_path)
    assert page.stat().st_size - len(get_plotlyjs().encode()) < 5e6


def test_a_page_of_a_search_that_runs_reloads_itself(
    browser: Any, trials: list[TrialRecord], tmp_path: Path
) -> None:
    """It keeps its place, and stops once the search is over."""
    collection = Trials(trials, OBJECTIVES)
    path = write_report(collection, replace(context(), reload_seconds=3.0), tmp_path)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{path.as_uri()}#search")
    assert "running. This page reloads itself every 3 s." in page.inner_text("#live")
    drawn = "window.height === (window.height = document.body.scrollHeight)"
    page.wait_for_function(drawn, polling=500)
    page.evaluate("window.before = 1; window.scrollTo({top: 900, behavior: 'instant'})")
    page.wait_for_function("window.before === undefined && window.scrollY > 300")
    assert page.url.endswith("#search")
    write_report(collection, context(), tmp_path)
    page.wait_for_function("document.getElementById('live') === null")
    page.evaluate("window.before = 1")
    page.wait_for_timeout(4000)
    assert page.evaluate("window.before") == 1
    page.close()
