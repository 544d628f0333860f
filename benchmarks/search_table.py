"""A table of real trainings: every plan of a small space, with its learning curve.

    python benchmarks/search_table.py demo --workers 2      # trains, or goes on
    python benchmarks/search_table.py demo --collect        # writes studies/tables/demo.csv.gz
    python benchmarks/search_table.py demo --noise          # how far seeds lie apart
    python benchmarks/search_table.py multi30k --set data.text.folder=FOLDER

The study table_NAME is searched over all its plans with seed 1, and again with seeds 2 and 3 over
its first 60 in the order of the sampler stratified_random, each in a run folder of its own. What is
finished never runs again. `--collect` and `--noise` also work while trainings run.

Every point of a curve is a validation. The record keeps no time of a validation, so the seconds of
a training are spread evenly over its updates.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd

import nas_attn
from nas_attn.analysis.learning_curves import curves_of
from nas_attn.analysis.trials import Trials
from nas_attn.curves import Curve, Point, write_curves
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.files import write_text

TABLES = ROOT / "studies" / "tables"
NAMES = ("demo", "multi30k")
SEEDS = (1, 2, 3)
REPEATED = 60
"""Plans that are trained with every seed."""
COSTS = ("attention", "non_embedding", "total", "effective", "cache_bytes")
COLUMNS = ("plan", "words", *COSTS, "loss", "mean_loss", "seeds")


def run_name(name: str, seed: int) -> str:
    """Name of the run of a seed."""
    return f"table_{name}" if seed == SEEDS[0] else f"table_{name}_seed_{seed}"


def train(name: str, seeds: Sequence[int], options: argparse.Namespace) -> None:
    """Run the searches, or go on with them."""
    for seed in seeds:
        trials = options.trials
        if seed != SEEDS[0]:
            trials = min(REPEATED, trials or REPEATED)
        own = [f"name={run_name(name, seed)}", f"training.seeds=[{seed}]"]
        results = nas_attn.search(
            f"table_{name}",
            trials=trials,
            workers=options.workers,
            overrides=[*own, *options.set],
            runs=options.runs,
        )
        print(results, flush=True)


def recorded(name: str, runs: Path) -> dict[int, Trials]:
    """What each seed's run has finished so far."""
    found = {}
    for seed in SEEDS:
        folder = runs / run_name(name, seed)
        if folder.is_dir():
            found[seed] = nas_attn.open_study(folder).read()
    if not found:
        raise UsageError(f"{runs} holds no run {run_name(name, SEEDS[0])}: train it first")
    return found


def disorder(found: Mapping[int, Trials]) -> list[str]:
    """Runs of further seeds that do not have the plans that the first seed's begins with."""
    first = [t.plan for t in found.get(SEEDS[0], ()) if t.uses_budget]
    wrong = []
    for seed, trials in found.items():
        plans = [t.plan for t in trials if t.uses_budget]
        if first and plans != first[: len(plans)]:
            wrong.append(f"seed {seed} trains other plans than the first {len(plans)} of seed 1")
    return wrong


def rounded(curve: Curve) -> Curve:
    return Curve(tuple(Point(n, round(loss, 5), round(s, 2)) for n, loss, s in curve.points))


def collected(found: Mapping[int, Trials]) -> dict[tuple[str, int], Curve]:
    """Curves of all finished trainings, by plan and then seed."""
    curves: dict[tuple[str, int], Curve] = {}
    for trials in found.values():
        curves |= curves_of(trials)
    return {key: rounded(curves[key]) for key in sorted(curves)}


def by_plan(found: Mapping[int, Trials]) -> dict[str, list[TrialRecord]]:
    """Finished trials of each plan, in the order of their seeds."""
    plans: dict[str, list[TrialRecord]] = {}
    for trials in found.values():
        for trial in trials.trained:
            if trial.plan is not None:
                plans.setdefault(trial.plan.dumps(), []).append(trial)
    return dict(sorted(plans.items()))


def plan_rows(found: Mapping[int, Trials]) -> list[list[object]]:
    """Rows of NAME_plans.csv."""
    rows: list[list[object]] = []
    for text, trials in by_plan(found).items():
        costs = {tuple(trial.costs[name] for name in COSTS) for trial in trials}
        if len(costs) > 1:
            raise NasAttnError(f"seeds leave models of several sizes: {text}")
        losses = [trial.losses[0] for trial in trials]
        first, mean = round(losses[0], 5), round(statistics.fmean(losses), 5)
        rows.append([text, str(trials[0].plan), *costs.pop(), first, mean, len(trials)])
    return rows


def collect(name: str, runs: Path, out: Path) -> None:
    """Write NAME.csv.gz and NAME_plans.csv."""
    found = recorded(name, runs)
    for fault in disorder(found):
        print(f"note: {fault}")
    curves, rows = collected(found), plan_rows(found)
    if not rows:
        raise UsageError("no training has finished yet")
    out.mkdir(parents=True, exist_ok=True)
    write_curves(curves, out / f"{name}.csv.gz")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    write_text(out / f"{name}_plans.csv", text.getvalue())
    keep_predicted(runs / run_name(name, SEEDS[0]), out / f"{name}_predicted.csv")
    thrice = sum(row[-1] == len(SEEDS) for row in rows)
    hours = sum(curve.seconds for curve in curves.values()) / 3600
    print(
        f"{name}: {len(rows)} plans, {thrice} of them with {len(SEEDS)} seeds; {len(curves)} "
        f"trainings, {hours:.1f} hours of training; written to {os.path.relpath(out)}"
    )


def keep_predicted(run: Path, out: Path) -> None:
    """Write what `nas-attn sensitivity` has measured of the baseline, if it has."""
    measured = run / "sensitivity" / "sensitivity.csv"
    if not measured.is_file():
        print("note: nas-attn sensitivity has not measured the baseline of seed 1")
        return
    frame = pd.read_csv(measured, usecols=["unit", "choice", "change", "change_error"])
    write_text(out, frame.round(5).to_csv(index=False, lineterminator="\n"))


def noise(name: str, runs: Path) -> None:
    """Print how far the final losses of seeds lie apart, for plans that have all seeds."""
    losses = [[t.losses[0] for t in ts] for ts in by_plan(recorded(name, runs)).values()]
    whole = [of_seeds for of_seeds in losses if len(of_seeds) == len(SEEDS)]
    spread = statistics.pstdev(of_seeds[0] for of_seeds in losses)
    print(f"{name}: standard deviation of final losses over {len(losses)} plans {spread:.4f}")
    if len(whole) < 2:
        print(f"{name}: {len(whole)} plans have {len(SEEDS)} seeds, too few to tell their noise")
        return
    within = math.sqrt(statistics.fmean(map(statistics.variance, whole)))
    means = [statistics.fmean(of_seed) for of_seed in zip(*whole, strict=True)]
    centred = [[x - m for x, m in zip(row, means, strict=True)] for row in whole]
    squares = sum(statistics.variance(row) * (len(row) - 1) for row in centred)
    rest = math.sqrt(squares / (len(whole) - 1) / (len(SEEDS) - 1))
    print(
        f"{name}: of {len(whole)} plans over {len(SEEDS)} seeds {within:.4f}; a seed moves all "
        f"(means {', '.join(f'{mean:.4f}' for mean in means)}), and without that {rest:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--trials", type=int, help="plans of a seed, at most; all if left out")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--collect", action="store_true", help="write the table, and train nothing")
    parser.add_argument("--noise", action="store_true", help="print the noise, and train nothing")
    parser.add_argument("--out", type=Path, default=TABLES, help="folder of the table")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(message)s")
    try:
        if options.collect:
            collect(options.name, options.runs, options.out)
        if options.noise:
            noise(options.name, options.runs)
        if not (options.collect or options.noise):
            train(options.name, options.seeds, options)
    except NasAttnError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
