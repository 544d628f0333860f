"""What searches reach for their updates: hypervolume of each, as a share of what one ended with.

    nas-attn search STUDY --set name=cold --set search.strategy=sampler \\
        --set search.warm_start.source=nothing --set search.trials=61
    nas-attn search STUDY --set name=predicted
    python benchmarks/hypervolume.py STUDY cold predicted

Searches are named as their run folders are, the first is what others are measured by; `NAME (cold)`
are the trials that `search.warm_start.rank_agreement` has trained from scratch, with that search's
baseline. All must end with the same fine-tuning. Where one of them has measured single conversions,
how these order the trained plans of all is said, too. Hypervolume is up to the baseline's cost and
the loss that the baseline had after its first validation. Updates are all of a search, its baseline
and what was stopped included, in trainings of the baseline; measuring single conversions needs no
update, but the seconds are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.analysis.hypervolume import first_validation
from nas_attn.analysis.predictions import Predictions
from nas_attn.engine.sensitivity import AdditiveModel
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError
from nas_attn.pareto import hypervolume
from nas_attn.rank_agreement import LEAST_COUNT, rank_agreement
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study

COLD = " (cold)"
MARKS = (1.5, 2, 3, 5, 10, 20, 40)
"""Trainings after which searches are compared."""


@dataclass(frozen=True)
class Search:
    """A search that is over.

    Args:
        name: Name of its study in the storage.
        trials: Trials that spent updates, in order, the baseline first.
        measured: Seconds for single conversions and tests of predictions.
        predicted: Findings of what single conversions predict; None without.
    """

    name: str
    trials: Sequence[TrialRecord]
    measured: float
    predicted: AdditiveModel | None

    def within(self, updates: float) -> list[TrialRecord]:
        """The trials that so many updates pay for."""
        spent, paid = 0, []
        for trial in self.trials:
            spent += trial.updates
            if spent > updates:
                break
            paid.append(trial)
        return paid


def read_search(study: Study, name: str, runs: Path) -> Search:
    """Read a search's record, which must be there."""
    base = name.removesuffix(COLD)
    storage = open_storage(study.config.execution.storage, runs / base)
    store = TrialStore(base, storage, study.objectives)
    trials, measured, predicted = store.trials(), 0.0, None
    if name != base:
        trials = [trials[0], *TrialStore(name, storage, study.objectives).trials()]
    else:
        for distil in (False, True):
            with contextlib.suppress(NasAttnError):
                predictions = Predictions(target_of_study(study, None, distil=distil), store)
                measured += sum(t.seconds for t in predictions.store.trials())
                predicted = predictions.model()
    spending = [trial for trial in trials if trial.updates]
    if not spending or not spending[0].is_baseline:
        raise NasAttnError(f"{name}: its baseline is not trained")
    return Search(name, spending, measured, predicted)


def say_order(searches: Sequence[Search]) -> None:
    """Print how predictions order what was trained, if any search has made some."""
    model = next((search.predicted for search in searches if search.predicted), None)
    if model is None:
        return
    print("\nhow predictions by single conversions order the trained plans")
    for search in searches:
        trained = [t for t in search.trials if t.is_trained and not t.is_baseline]
        pairs = [(t, model.predict(t.plan)) for t in trained if t.plan is not None]
        known = [(t.cost or 0, p.change, t.loss or 0.0) for t, p in pairs if p is not None]
        if len(known) >= LEAST_COUNT:
            ranks = rank_agreement(*zip(*known, strict=True))
            print(f"{search.name:28}{len(known)} plans, {ranks}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("searches", nargs="+", metavar="SEARCH")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = load_study(options.study, overrides=options.set, runs=options.runs)
    searches = [read_search(study, name, options.runs) for name in options.searches]
    baseline = searches[0].trials[0]
    weak = first_validation(baseline, study.objectives.metric)
    if weak is None:
        raise NasAttnError(f"{searches[0].name}: the log of its baseline is gone")
    reference = (float(baseline.cost or 0), weak)

    def volume(trials: Sequence[TrialRecord]) -> float:
        reached = [t for t in trials if t.is_trained]
        return hypervolume([(float(t.cost or 0), t.loss or 0.0) for t in reached], reference)

    best = volume(searches[0].trials)
    print(f"reference {reference[0]:,.0f} {study.objectives.primary_cost}, loss {weak:.4f}")
    print(f"shares of the hypervolume that {searches[0].name} ended with, after so many trainings")
    print(" " * 28 + "".join(f"{mark:>8}" for mark in MARKS) + "     end  reaches all of it after")
    for search in searches:
        shares = [volume(search.within(mark * baseline.updates)) / best for mark in MARKS]
        spent, needed = 0, "never"
        for count, trial in enumerate(search.trials, start=1):
            spent += trial.updates
            if volume(search.trials[:count]) >= best:
                needed = f"{spent / baseline.updates:.2f} trainings, {count} trials"
                break
        cells = "".join(f"{share:8.3f}" for share in (*shares, volume(search.trials) / best))
        print(f"{search.name:28}{cells}  {needed}")
    print("\n" + " " * 28 + "trials  updates  seconds of training, of measuring")
    for search in searches:
        updates = sum(trial.updates for trial in search.trials)
        seconds = sum(trial.seconds or 0.0 for trial in search.trials)
        print(
            f"{search.name:28}{len(search.trials):6d} {updates:8,d} {seconds:8,.0f}"
            f"             {search.measured:8,.0f}"
        )
    say_order(searches)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
