"""How long a report takes, and how large its page is, at 200, 2,000 and 20,000 trials.

    python benchmarks/report.py [COUNT ...]

Trials are made up: random per-layer plans of a 3+3-layer model of width 256, with their exact
parameters, and losses that grow as these shrink. Where Playwright and Chromium are there, the page
is opened, too: until its document is ready, and until the first chart is drawn.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from optuna.trial import TrialState

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.analysis.trials import Trials
from nas_attn.engine.objectives import Objectives
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.models import Sizer
from nas_attn.measures import ModelSize
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.report import ReportContext, write_report
from nas_attn.space import SearchSpace
from nas_attn.study.spaces import load_space_config

COUNTS = (200, 2_000, 20_000)
SHAPES = {
    site: SiteShape(num_layers=3, embed_dim=256, num_heads=4)
    for site in ("encoder_self", "decoder_self", "encoder_decoder")
}
OBJECTIVES = Objectives(metric="nll_loss", maximise=False, costs=("total",), limits={})


@cache
def sizer() -> Sizer:
    return Sizer(SHAPES, ModelSize(0, 1_280_000, 3_000_000, 3_000_000))


def make_trial(number: int, plan: AttentionPlan, chance: random.Random) -> TrialRecord:
    """A trial that was trained, stopped early, or has failed."""
    size = sizer().size(plan)
    loss = 2.4 + 1e6 / size.total + abs(chance.gauss(0.0, 0.05))
    state = TrialState.COMPLETE
    if number and chance.random() < 0.3:
        state = TrialState.PRUNED if chance.random() < 0.9 else TrialState.FAIL
    is_complete = state == TrialState.COMPLETE
    command = ("fairseq-train", "data", "--attention-plan", plan.dumps(), "--seed", "1")
    return TrialRecord(
        number=number,
        state=state,
        plan=plan,
        size=size,
        costs=size._asdict(),
        cost_is_exact=True,
        pruned=(),
        losses=(loss,) if is_complete else (),
        loss=loss if is_complete else None,
        point=(loss, float(size.total)) if is_complete else None,
        cost=size.total,
        effective=size.acting("total"),
        seconds=600.0,
        updates=2720,
        is_warm=False,
        is_baseline=number == 0,
        duplicate_of=None,
        is_superseded=False,
        reason="loss is not finite" if state == TrialState.FAIL else None,
        failure=None,
        attempts=(),
        rungs={"1": {}} if state == TrialState.PRUNED else {},
        curve={272 * epoch: loss + 4 / epoch for epoch in range(1, 11)},
        tests=(),
        commands=((*command, "--save-dir", "x"),),
        starts=(),
        threads=1,
        folder=f"runs/made-up/trials/{number:05d}",
        driver=None,
        started=None,
        ended=None,
        proposal=None,
        params={},
        system={},
        values=None,
    )


def make_trials(count: int) -> list[TrialRecord]:
    space = SearchSpace(load_space_config("inherited_per_layer"), SHAPES)
    chance = random.Random(count)
    plans = [AttentionPlan.uniform(AttentionChoice("multi_head"), tuple(SHAPES))]
    plans += [
        space.plan([chance.choice(unit.alternatives) for unit in space.units])
        for _ in range(count - 1)
    ]
    return [make_trial(number, plan, chance) for number, plan in enumerate(plans)]


def open_page(page: Path) -> str:
    """Seconds in a browser, in words."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "no Playwright"
    if chromium is None:
        return "no Chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.goto(page.as_uri())
        opened.wait_for_selector("#chart-front .main-svg")
        ready, drawn = opened.evaluate(
            "[performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd,"
            " performance.now()]"
        )
        browser.close()
    return f"ready {ready / 1000:.2f} s, first chart {drawn / 1000:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("counts", nargs="*", type=int, default=COUNTS)
    options = parser.parse_args()
    from plotly.offline import get_plotlyjs

    library = len(get_plotlyjs().encode())
    print(f"plot library {library / 1e6:.2f} MB, not counted below")
    versions = dict.fromkeys(("nas-attn", "torch", "optuna", "fairseq-fixed"), "")
    context = ReportContext(
        name="made-up",
        description="",
        seeds=1,
        settings={},
        versions=versions,
        machine="",
        evaluate={},
        shapes=SHAPES,
    )
    for count in options.counts:
        trials = make_trials(count)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            page = write_report(Trials(trials, OBJECTIVES), context, Path(folder))
            seconds = time.perf_counter() - start
            size = (page.stat().st_size - library) / 1e6
            print(f"{count:6,} trials: written in {seconds:5.1f} s, page {size:.2f} MB", end="; ")
            print(open_page(page), flush=True)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
