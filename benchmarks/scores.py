"""What scores of single changes save, and how well their sums order whole plans.

    nas-attn sensitivity STUDY --scores gradient     # says how long the scoring took
    nas-attn sensitivity STUDY --scores auto
    nas-attn sensitivity STUDY --scores measured
    python benchmarks/scores.py STUDY

Prints what the single changes on record took to measure, each in a pass over the validation split,
and Kendall's tau of sums of measured changes, and of scores by gradients, with what was measured of
the plans that test predictions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import optuna

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.analysis.predictions import Predictions
from nas_attn.errors import NasAttnError
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study
from nas_attn.workflows.records import open_store


def describe(study: Study) -> None:
    predictions = Predictions(target_of_study(study, None), open_store(study))
    singles = {change.plan for change in predictions.changes}
    trials = [trial for trial in predictions.store.trials() if trial.is_trained]
    seconds = [trial.seconds for trial in trials if trial.plan in singles]
    print(f"{len(singles)} single changes, {len(seconds)} measured", end="")
    if seconds:
        mean = statistics.fmean(seconds)
        print(f" in {sum(seconds):.0f} s, {mean:.2f} s each; all take {mean * len(singles):.0f} s")
    for name, tau in predictions.findings().orders.items():
        print(f"tau of sums by {name}: {tau:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    describe(load_study(options.study, overrides=options.set, runs=options.runs))


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
