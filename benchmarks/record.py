"""The tables of a study of record: every model on the test set, changes with their intervals.

    nas-attn search multi30k_record
    python benchmarks/inheritance.py train multi30k_record --name multi30k_record \\
        --arm both --plan PLAN
    nas-attn confirm multi30k_record --seeds 2 --trial N --plan PLAN
    python benchmarks/record.py test multi30k_record
    python benchmarks/record.py tables multi30k_record
    python benchmarks/record.py keep multi30k_record --into studies/multi30k_record

`test` evaluates on the test set what the search and the arms of `inheritance.py` have trained, each
seed's model once; what a confirmation trained is evaluated already. What was evaluated is not
evaluated again. `tables` prints a row a plan: cost, change of the validation loss and of the test
score against the baseline with the same seeds (95 %, Student's, seeds taken as pairs), and for
translation the 95 % interval of one model's BLEU by sacreBLEU's bootstrap over sentences (half of
it, mean over the seeds). Of each plan of an arm it says which plan of the search is smaller and
loses less. It writes the rows to record.csv in the run folder, and says how many hours all of it
took. `keep` copies what is small: rows, front, heat map, summary, single changes and the
validations of every training; of what was confirmed without a search, rows and validations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import sacrebleu

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.inheritance import ARMS, arm_store
from nas_attn.analysis.confirmation import paired_change
from nas_attn.analysis.predictions import Predictions
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord, front
from nas_attn.errors import NasAttnError, SearchError
from nas_attn.report.tables import write_rows
from nas_attn.study.evaluation import evaluation_of
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study
from nas_attn.trials.layout import START, TEST_LOG_FILE, best_checkpoint
from nas_attn.trials.processes.programs import executable_form
from nas_attn.trials.scores import parse_scores
from nas_attn.validation_log import read_report
from nas_attn.workflows.reporting import CONFIRMED, confirmation_store

DRAWS = 1000
"""Of sacreBLEU's bootstrap."""
RECORD, SINGLE = "record.csv", "sensitivity.csv"
FRESH = "from nothing"


@dataclass(frozen=True)
class Part:
    """Trials that are compared with one baseline.

    Args:
        name: How they were trained.
        trials: What was trained, without the baseline.
        baseline: The baseline with the same seeds.
        seeds: Seeds of each.
        is_searched: Whether it is the search itself.
    """

    name: str
    trials: Sequence[TrialRecord]
    baseline: TrialRecord
    seeds: Sequence[int]
    is_searched: bool = False

    def logs(self, trial: TrialRecord) -> list[Path]:
        """Where the evaluation of each seed is."""
        return [Path(str(trial.folder)) / f"seed-{seed}" / TEST_LOG_FILE for seed in self.seeds]


@dataclass(frozen=True)
class Difference:
    """A mean over seeds, and its change against the baseline's with half of its 95 % interval."""

    mean: float
    change: float
    interval: float | None

    @classmethod
    def of(cls, values: Sequence[float], reference: Sequence[float]) -> Difference:
        return cls(statistics.fmean(values), *paired_change(values, reference))

    def text(self, digits: int) -> str:
        around = "" if self.interval is None else f" ±{self.interval:.{digits}f}"
        return f"{self.change:+.{digits}f}{around}"


def open_search(study: Study) -> TrialStore:
    storage = open_storage(study.config.execution.storage, study.folder)
    return TrialStore(study.name, storage, study.objectives)


def parts_of(study: Study, store: TrialStore) -> Iterator[Part]:
    """The search, the arms and the confirmation, as far as they are on record."""
    trained = [trial for trial in store.trials() if trial.is_trained]
    baseline = next((trial for trial in trained if trial.is_baseline), None)
    seeds = study.config.training.seeds
    if baseline is not None:  # else plans were confirmed without a search
        yield Part("search", [x for x in trained if not x.is_baseline], baseline, seeds, True)
        for arm in ARMS:
            if store.has_child(f"{store.name} ({arm})"):
                trials = arm_store(store, arm, study).trials()
                yield Part(arm, [x for x in trials if x.is_trained], baseline, seeds)
    count = store.metadata().get(CONFIRMED)
    if count is not None:
        trials = [x for x in confirmation_store(study, store, count).trials() if x.is_trained]
        of_seeds = next((x for x in trials if x.is_baseline), None)
        if of_seeds is not None:
            fresh = range(max(seeds) + 1, max(seeds) + 1 + count)
            others = [x for x in trials if not x.is_baseline]
            yield Part(FRESH, others, of_seeds, list(fresh))


def evaluate(study: Study, part: Part) -> None:
    """Evaluate on the test set what was not."""
    for trial in (part.baseline, *part.trials):
        for log in part.logs(trial):
            if is_evaluated(log):
                continue
            command = evaluation_of(study.config, study.data_set, best_checkpoint(log.parent))
            half = log.with_suffix(".part")
            with half.open("w", encoding="utf-8") as output:
                environment = {**os.environ, "OMP_NUM_THREADS": str(study.config.resources.cpus)}
                subprocess.run(
                    executable_form(command),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    check=True,
                )
            half.replace(log)
            print(f"{part.name}, trial {trial.number}, {log.parent.name}: {scores_of(log)}")


def is_evaluated(log: Path) -> bool:
    try:
        return bool(scores_of(log))
    except (OSError, NasAttnError):
        return False


def scores_of(log: Path) -> dict[str, float]:
    return parse_scores(log.read_text(encoding="utf-8", errors="replace"))


def test_values(study: Study, logs: Sequence[Path]) -> list[float]:
    """The score of each seed: BLEU, or a language model's loss in bits."""
    name = "bleu" if study.config.training.task == "translation" else "nll_loss"
    if not all(map(is_evaluated, logs)):
        raise SearchError(f"{logs[0].parent.parent} is not evaluated: run `record.py test` first")
    return [scores_of(log)[name] for log in logs]


def bootstrap(log: Path) -> float:
    """Half of the 95 % interval of a model's BLEU, by drawing sentences."""
    lines = log.read_text(encoding="utf-8").splitlines()
    kinds: dict[str, dict[int, str]] = {"T": {}, "D": {}}
    for line in lines:
        found = re.match(r"([TD])-(\d+)\t(?:[-\d.e]+\t)?(.*)", line)
        if found:
            kinds[found[1]][int(found[2])] = found[3]
    numbers = sorted(kinds["D"])
    said = [kinds["D"][number] for number in numbers]
    wanted = [kinds["T"][number] for number in numbers]
    score = sacrebleu.metrics.BLEU().corpus_score(said, [wanted], n_bootstrap=DRAWS)
    return float(score._ci)


def rows_of(study: Study, part: Part) -> Iterator[dict[str, str]]:
    """A row for the baseline, and for each plan from small to large."""
    baseline, is_translation = part.baseline, study.config.training.task == "translation"
    on_front = {trial.number for trial in front([baseline, *part.trials])}
    reference = test_values(study, part.logs(baseline))
    for trial in sorted((baseline, *part.trials), key=lambda trial: trial.cost or 0):
        loss = Difference.of(trial.losses, baseline.losses)
        values = test_values(study, part.logs(trial))
        test = Difference.of(values, reference)
        share = (trial.cost or 0) / (baseline.cost or 1) - 1
        yield {
            "trained": part.name,
            "trial": str(trial.number),
            "front": "yes" if part.is_searched and trial.number in on_front else "",
            "plan": "" if trial.plan is None else trial.plan.dumps(),
            "words": trial.text,
            "cost": str(trial.cost),
            "share": f"{share:+.1%}",
            "loss": f"{loss.mean:.4f}",
            "loss_change": "" if trial is baseline else loss.text(4),
            "test": f"{test.mean:.2f}" if is_translation else f"{test.mean:.4f}",
            "test_change": "" if trial is baseline else test.text(2 if is_translation else 4),
            "bootstrap": f"{statistics.fmean(map(bootstrap, part.logs(trial))):.2f}"
            if is_translation
            else "",
            "seeds": str(len(trial.losses)),
        }


def say_better(part: Part, search: Part) -> None:
    """A row a plan: the best of the search's that are no larger and lose less, if one does."""
    print("\n| plan | parameters | the search's best that is no larger | loses less by |")
    print("|---|---:|---:|---:|")
    for trial in sorted(part.trials, key=lambda trial: trial.cost or 0):
        loss = statistics.fmean(trial.losses)
        smaller = [other for other in search.trials if (other.cost or 0) <= (trial.cost or 0)]
        best = min(smaller, key=lambda other: statistics.fmean(other.losses), default=trial)
        cells = ["none", ""]
        if statistics.fmean(best.losses) < loss:
            less = Difference.of(trial.losses, best.losses).text(4).removeprefix("+")
            cells = [f"{best.cost:,}", less]
        print(f"| {escaped(trial.text)} | {trial.cost:,} | {' | '.join(cells)} |")


def escaped(words: str) -> str:
    """A plan in words as Markdown has it in a table."""
    return words.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")


def say_table(study: Study, rows: Sequence[dict[str, str]], last: str = "plan") -> None:
    cost = study.objectives.primary_cost.replace("_", "-")
    is_translation = study.config.training.task == "translation"
    name = "BLEU" if is_translation else "test loss"
    titles = [f"{cost} parameters", "share", f"valid {study.objectives.metric}", "change", name]
    titles += [f"change of {name}", *["one model's 95 %"] * is_translation]
    print(f"| {' | '.join([*titles, last])} |")
    print(f"|{'---:|' * len(titles)}---|")
    names = ["share", "loss", "loss_change", "test", "test_change", *["bootstrap"] * is_translation]
    for row in rows:
        cells = [f"{int(row['cost']):,}", *(row[name] for name in names), escaped(row["words"])]
        print("| " + " | ".join(cells) + " |")


def hours(study: Study, store: TrialStore, parts: Sequence[Part]) -> Iterator[str]:
    """What all of it took, on one thread a training."""
    total = 0.0
    for part in parts:
        # Arms have the search's baseline.
        baselines = [] if part.name in ARMS else [part.baseline]
        seconds = sum(trial.seconds for trial in (*baselines, *part.trials))
        yield f"{part.name}: {seconds / 3600:.1f} hours"
        total += seconds
    try:
        distils = study.config.search.warm_start.distil
        predictions = Predictions(target_of_study(study, None, distil=distils), store)
        measured = sum(trial.seconds for trial in predictions.store.trials())
        yield f"single conversions and tests of predictions: {measured / 3600:.1f} hours"
        total += measured
    except SearchError:
        pass  # none were measured
    yield f"in all: {total / 3600:.1f} hours"


def say_tables(study: Study, store: TrialStore, parts: Sequence[Part]) -> None:
    rows = []
    for part in parts:
        of_part = list(rows_of(study, part))
        print(f"\n{part.name}, seeds {', '.join(map(str, part.seeds))}\n")
        say_table(study, of_part, f"trained {part.name}" if part.name == FRESH else "plan")
        if part.name in ARMS:
            say_better(part, parts[0])
        rows += of_part
    write_rows(rows, study.folder / RECORD)
    singles = target_of_study(study, None).measurements / SINGLE
    if singles.is_file():
        say_sites(singles)
    print()
    print("\n".join(hours(study, store, parts)))


def say_sites(singles: Path) -> None:
    """A row for each choice: what single conversions cost, summed over the layers of a site."""
    sums: dict[str, dict[str, float]] = {}
    for row in read_rows(singles):
        site = row["unit"].partition(".")[0]
        of_choice = sums.setdefault(row["choice"], {})
        of_choice[site] = of_choice.get(site, 0.0) + float(row["change"])
    sites = list(dict.fromkeys(site for of_choice in sums.values() for site in of_choice))
    print(f"\n| in every layer of a site | {' | '.join(sites)} |")
    print(f"|---|{'---:|' * len(sites)}")
    for choice, of_choice in sorted(sums.items(), key=lambda item: sum(item[1].values())):
        cells = (f"{of_choice[site]:+.4f}" if site in of_choice else "" for site in sites)
        print(f"| {choice} | {' | '.join(cells)} |")


def keep(study: Study, parts: Sequence[Part], folder: Path) -> None:
    """Write the small forms of a study of record into a folder."""
    if not (study.folder / RECORD).is_file():
        raise SearchError(f"there is no {RECORD} to keep: run `record.py tables` first")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study.folder / RECORD, folder / RECORD)
    write_rows(list(curves_of(study, parts)), folder / "curves.csv.gz")
    if not parts[0].is_searched:
        return
    measured = target_of_study(study, None).measurements
    for path in (
        *(study.folder / "report" / name for name in ("front.svg", "summary.md")),
        measured / "heatmap.svg",
    ):
        shutil.copyfile(path, folder / path.name)
    front = read_rows(study.folder / "report" / "front.csv")
    write_rows([without(row, "command", "folder") for row in front], folder / "front.csv")
    singles = read_rows(measured / SINGLE)
    unneeded = ("divergence", "divergence_error", "score", "plan", "cost_change")
    write_rows([without(row, *unneeded) for row in singles], folder / f"{SINGLE}.gz")


def curves_of(study: Study, parts: Sequence[Part]) -> Iterator[dict[str, str]]:
    """A row for each validation of each training; `start` is the one that is fine-tuned."""
    for part in parts:
        baseline = [] if part.name in ARMS else [part.baseline]
        for trial, seed in itertools.product((*baseline, *part.trials), part.seeds):
            run = Path(str(trial.folder)) / f"seed-{seed}"
            for stage, report in ((START, run / START), ("", run)):
                for line in read_report(report):
                    yield {
                        "trained": part.name,
                        "trial": str(trial.number),
                        "seed": str(seed),
                        "stage": stage,
                        "num_updates": str(line["num_updates"]),
                        study.objectives.metric: f"{line['metrics'][study.objectives.metric]:.4f}",
                    }


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without(row: dict[str, str], *names: str) -> dict[str, str]:
    """A row without columns that are large, or name folders of this machine."""
    return {name: value for name, value in row.items() if name not in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("test", "tables", "keep"))
    parser.add_argument("study")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="of `keep`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = load_study(options.study, overrides=options.set, runs=options.runs)
    store = open_search(study)
    parts = list(parts_of(study, store))
    if options.what == "test":
        for part in parts:
            evaluate(study, part)
    elif options.what == "keep":
        keep(study, parts, options.into or ROOT / "studies" / study.name)
    else:
        say_tables(study, store, parts)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
