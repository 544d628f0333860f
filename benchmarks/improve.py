"""What going by sums of single changes is worth, and looking next to them: hypervolumes.

    nas-attn sensitivity multi30k_sensitivity --improve 40
    python benchmarks/improve.py multi30k_sensitivity

Compares, in measured changes of the loss without any training, the plans that sums predict to be
on the front (those of the tests), the same with what was found next to them, and what NSGA-II
(Optuna's, population 24) finds in as many passes over the validation split as all of that took.
Hypervolume is up to the baseline's cost and the largest change that sums predict of a plan on the
front, and the share of what all plans together have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.analysis.predictions import Predictions
from nas_attn.attention import Attention
from nas_attn.conversion.convert import convert_from
from nas_attn.conversion.source import ConversionSource
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.convert import changed_choices, validation_losses
from nas_attn.fairseq_tools.measure import load_calibration
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.pareto import hypervolume
from nas_attn.plan import AttentionPlan
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study
from nas_attn.trials.layout import CALIBRATION_FILE

Points = list[tuple[float, float]]
POPULATION = 24


class Measurer:
    """Measures plans in this process; every module is converted once."""

    def __init__(self, checkpoint: Path, data: Path, calibration: Path) -> None:
        self.trained = load_trained(checkpoint)
        self.plain = self.trained.attention()
        calls = load_calibration(calibration).calls
        self.sources = {
            place: ConversionSource(module, calls[place]) for place, module in self.plain.items()
        }
        self.data = data
        self.made: dict[Any, Attention] = {}
        self.before = validation_losses(self.trained, data)

    def change(self, plan: AttentionPlan) -> float:
        """Of the loss, in bits a token."""
        for (site, layer), choice in changed_choices(self.trained, plan).items():
            place = f"{site}.{layer}"
            if (place, choice) not in self.made:
                made = convert_from(self.sources[place], choice, judge=False).module
                self.made[place, choice] = made
            self.trained.modules[site, layer].attention = self.made[place, choice]
        losses = validation_losses(self.trained, self.data)
        for (site, layer), adapter in self.trained.modules.items():
            adapter.attention = self.plain[f"{site}.{layer}"]
        return losses.change_from(self.before)[0]


def evolved(predictions: Predictions, measurer: Measurer, passes: int, seed: int) -> Points:
    """Cost and change of what NSGA-II tries."""
    target = predictions.target
    units = target.space.units

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        chosen = []
        for unit in units:
            names = [str(n) for n, alternative in enumerate(unit.alternatives)]
            name = trial.suggest_categorical(unit.name, names)
            chosen.append(unit.alternatives[int(name)])
        plan = target.space.plan(chosen)
        if plan != target.baseline and not target.inherits(plan):
            raise optuna.TrialPruned
        return float(target.costs.known(plan)[predictions.axis]), measurer.change(plan)

    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    search = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    search.optimize(objective, n_trials=passes)
    return [(t.values[0], t.values[1]) for t in search.trials if t.values is not None]


def compare(study: Study, seed: int) -> None:
    storage = open_storage(study.config.execution.storage, study.folder)
    store = TrialStore(study.name, storage, study.objectives)
    baseline = next(trial for trial in store.trials() if trial.is_baseline and trial.is_trained)
    checkpoint = study.trained_checkpoint(baseline)
    predictions = Predictions(target_of_study(study, checkpoint), store)
    measured, findings = predictions.measured(), predictions.findings()
    costs = {
        plan: float(predictions.target.costs.known(plan)[predictions.axis]) for plan in measured
    }

    def points(plans: Iterable[AttentionPlan]) -> Points:
        return [(costs[plan], measured[plan].change) for plan in plans] + [base]

    base = (float(findings.base_cost), 0.0)
    front = [check.plan for check in findings.checks if check.kind == "predicted"]
    near = [plan for plan in measured if plan.digest in predictions.tried]
    measurer = Measurer(
        checkpoint, study.data_folder, predictions.target.measurements / CALIBRATION_FILE
    )
    found = {
        f"sums ({len(measured) - len(near)} passes)": points(front),
        f"sums, and next to them ({len(measured)})": points([*front, *near]),
        f"NSGA-II ({len(measured)})": [*evolved(predictions, measurer, len(measured), seed), base],
    }
    limit = (base[0], max(point.change for point in findings.front))
    whole = hypervolume([point for some in found.values() for point in some], limit)
    for name, some in found.items():
        print(f"{name}: {hypervolume(some, limit) / whole:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with torch.no_grad():
        compare(load_study(options.study, overrides=options.set, runs=options.runs), options.seed)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
