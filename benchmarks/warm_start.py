"""What a warm start is worth: hypervolume against updates, warm beside cold, on the same plans.

    nas-attn search multi30k_warm_start --set data.folder=DATA
    python benchmarks/warm_start.py multi30k_warm_start --set data.folder=DATA

The study is one that has been searched with `search.warm_start.rank_agreement`; `nas-attn
sensitivity` on it adds how predictions order the plans. The cold search is
made of the same plans in the same order, which is what the sampler stratified_random proposes
without a warm start too. Hypervolume is up to the baseline's cost and the loss that the baseline
had after its first validation, fixed before anything else is known, over the volume of the best
that all cold trainings together reach. A warm search is valued in two ways: by its own losses, and
by what its front's plans reach when trained from scratch, whose training is then paid for, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.analysis.agreement import agreement_of
from nas_attn.analysis.hypervolume import first_validation
from nas_attn.analysis.predictions import Predictions
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.errors import NasAttnError
from nas_attn.pareto import hypervolume
from nas_attn.rank_agreement import LEAST_COUNT, rank_agreement
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study


def say_predictions(study: Study, store: TrialStore, cold: Sequence[TrialRecord]) -> None:
    """Print how single conversions order the plans that were trained, if they were measured."""
    try:
        predictions = Predictions(target_of_study(study, None), store)
    except NasAttnError:
        return  # nas-attn sensitivity STUDY measures them
    model, trials = predictions.model(), store.trials()
    for words, trained in (
        ("fine-tuned", [trial for trial in trials if trial.is_warm and trial.is_trained]),
        ("trained from scratch", [trial for trial in cold if trial.is_trained]),
    ):
        pairs = [(t, model.predict(t.plan)) for t in trained if t.plan is not None]
        known = [(t.cost or 0, p.change, t.loss or 0.0) for t, p in pairs if p is not None]
        if len(known) >= LEAST_COUNT:
            ranks = rank_agreement(*zip(*known, strict=True))
            print(f"predicted by single conversions, and {words} ({len(known)} plans): {ranks}")


def compare(warm: Sequence[TrialRecord], cold: Sequence[TrialRecord], weak_loss: float) -> None:
    """Print what both searches have after each trial.

    Args:
        warm: Trials of the search that were trained, in order; the first is the baseline.
        cold: Trials of the same plans, trained from scratch.
        weak_loss: The loss of the reference point.
    """
    baseline = warm[0]
    by_plan = {trial.plan: trial for trial in (*cold, baseline)}
    pairs = [(trial, by_plan[trial.plan]) for trial in warm if trial.plan in by_plan]
    reference = (float(baseline.cost or 0), weak_loss)

    def volume(trials: Sequence[TrialRecord]) -> float:
        return hypervolume([(float(t.cost or 0), t.loss or 0.0) for t in trials], reference)

    def cold_values(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        return [by_plan[trial.plan] for trial in front(list(trials))]

    best = volume([both for _, both in pairs])
    whole = sum(trial.updates for _, trial in pairs)
    print(f"{len(pairs)} plans; reference {reference[0]:,.0f} parameters, loss {weak_loss:.4f}")
    print("shares of the cold search's final hypervolume, and of its updates:")
    print("trials   warm, own losses       warm, front trained cold       cold")
    for count in range(1, len(pairs) + 1):
        warm_part = [trial for trial, _ in pairs[:count]]
        cold_part = [trial for _, trial in pairs[:count]]
        spent = sum(trial.updates for trial in warm_part)
        again = [t for t in cold_values(warm_part) if t is not baseline]
        with_front = spent + sum(trial.updates for trial in again)
        cells = (
            (volume(warm_part), spent),
            (volume(cold_values(warm_part)), with_front),
            (volume(cold_part), sum(trial.updates for trial in cold_part)),
        )
        row = (f"{value / best:6.3f} for {updates / whole:6.1%}" for value, updates in cells)
        print(f"{count:6d}   {'      '.join(f'{cell:18}' for cell in row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = load_study(options.study, overrides=options.set, runs=options.runs)
    storage = open_storage(study.config.execution.storage, study.folder)
    names = (study.config.name, f"{study.config.name} (cold)")
    searched, cold = (TrialStore(name, storage, study.objectives).trials() for name in names)
    trained = [trial for trial in searched if trial.is_trained]
    agreement = agreement_of(trained, cold)
    if agreement is None or not trained or not trained[0].folder:
        sys.exit("too few plans were trained both ways")
    baseline_loss = trained[0].loss or 0.0
    print("trial       cost      warm      cold  plan  (losses less the baseline's, ", end="")
    print(f"{baseline_loss:.4f})")
    for pair in agreement.pairs:
        warm_change, cold_change = pair.warm - baseline_loss, pair.cold - baseline_loss
        about = f"{pair.trial:5d} {pair.cost:10,d}  {warm_change:+8.4f}  {cold_change:+8.4f}"
        print(f"{about}  {pair.plan}")
    print(agreement.verdict)
    say_predictions(study, TrialStore(names[0], storage, study.objectives), cold)
    weak = first_validation(trained[0], study.objectives.metric)
    if weak is None:
        sys.exit("the log of the baseline is gone")
    compare(trained, cold, weak)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
