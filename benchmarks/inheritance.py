"""What inheriting is worth: the same plans converted, distilled, fine-tuned, trained from scratch.

    python benchmarks/inheritance.py train multi30k_sensitivity --arm warm --arm cold --uniform
    python benchmarks/inheritance.py show multi30k_sensitivity

`train` trains the baseline of a study once a seed, and then each plan in each arm; what is on
record is not trained again, and a killed run goes on. Arms: `cold` trains a plan whole, as the
baseline was; `warm` converts the baseline; `distil` trains the converted modules alone, too;
`teacher` fine-tunes by the baseline's predictions. All end with the same fine-tuning. Plans:
`--uniform`, one scheme everywhere; `--front SEARCH COUNT`, the smallest that a search's single
conversions predict to be on the front; `--trials SEARCH`, all that a search trained; or --plan.

`show` prints the change of the validation loss against the untouched baseline, in bits: as
converted (`--converted` computes it, with and without distillation), and in each arm, mean over
seeds and, in brackets, the largest distance of a seed from it. `match` does the same for two or
more searches that trained the same plans, such as one with `search.warm_start.ladder` and the arm
`inheritance (distil)`; of seeds, given in the same order, so many as all of them trained.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import optuna

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.analysis.predictions import Predictions
from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError, SearchError
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.jobs import TrialJobs
from nas_attn.study.loading import load_study
from nas_attn.study.sensitivity import target_of_study
from nas_attn.study.study import Study
from nas_attn.trials.job import StartFolders, TrialJob
from nas_attn.trials.layout import BEST, START
from nas_attn.workflows.session import Session

ARMS = {
    "cold": {"source": "nothing"},
    "warm": {},
    "distil": {"distil": True},
    "teacher": {"teacher": "baseline"},
    "both": {"distil": True, "teacher": "baseline"},
}
"""What `search.warm_start` says in each."""
SEEDS = (1, 2, 3)


def uniform_plans(study: Study) -> list[AttentionPlan]:
    """One scheme everywhere, each scheme in two or three of its sizes."""
    heads = study.space.shapes["encoder_self"].num_heads
    width = study.space.shapes["encoder_self"].embed_dim
    choices = [AttentionChoice.of("grouped_query", num_groups=heads // 2)]
    choices += [
        AttentionChoice.of(name)
        for name in ("multi_query", "shared_key_value", "head_embedding_mul", "head_embedding_add")
    ]
    choices += [AttentionChoice.of("reduced_key", key_dim=width // share) for share in (2, 8)]
    choices += [
        AttentionChoice.of("collaborative", shared_dim=width // share, num_value_heads=values)
        for share, values in ((2, heads), (4, 1), (8, 1))
    ]
    choices += [AttentionChoice.of("single_head", narrow_output=True)]
    choices += [AttentionChoice.of("grouped_head", kept_heads=heads // 2, alpha=0.0, beta=0.0)]
    sites = tuple(study.space.shapes)
    return [AttentionPlan.uniform(choice, sites) for choice in choices]


def smallest_of_front(study: Study, search: str, count: int) -> list[AttentionPlan]:
    """The smallest plans that a search's single conversions predict to be on the front."""
    storage = open_storage(study.config.execution.storage, study.runs / search)
    store = TrialStore(search, storage, study.objectives)
    try:
        predictions = Predictions(target_of_study(study, None, distil=True), store)
    except SearchError:  # measured without
        predictions = Predictions(target_of_study(study, None), store)
    return [point.plan for point in predictions.findings().front[:count]]


def plans_of_search(study: Study, search: str) -> list[AttentionPlan]:
    """What a search trained, the baseline left out."""
    trials = read_trials(study, search)
    return [trial.plan for trial in trials if trial.plan is not None and not trial.is_baseline]


def read_trials(study: Study, name: str) -> list[TrialRecord]:
    """The trained trials of a search, or of an arm if its name ends with one in brackets."""
    base = name.partition(" (")[0]
    storage = open_storage(study.config.execution.storage, study.runs / base)
    trials = TrialStore(name, storage, study.objectives).trials()
    return [trial for trial in trials if trial.is_trained]


def arm_jobs(study: Study, arm: str) -> TrialJobs:
    """What builds the trials of an arm, in folders of its own."""
    changed = study.changed({"search": {"strategy": "sampler", "warm_start": ARMS[arm]}})
    return replace(changed.jobs, folder=study.folder / "arms" / arm)


def arm_store(store: TrialStore, arm: str, study: Study, *, create: bool = False) -> TrialStore:
    return TrialStore(f"{store.name} ({arm})", store.storage, study.objectives, create=create)


def train(study: Study, arms: Sequence[str], plans: Sequence[AttentionPlan]) -> None:
    """Train every plan in every arm, as far as the record does not hold it."""
    session = Session.begin(study)
    folder = Path(str(session.train_baseline().folder)).absolute()
    start = StartFolders(baseline=str(folder))
    for arm in arms:
        jobs = arm_jobs(study, arm)

        def build(
            number: int, plan: AttentionPlan, _: StartFolders, jobs: TrialJobs = jobs
        ) -> TrialJob:
            return jobs.search_trial(number, plan, start)

        session.run_plans(
            plans,
            store=arm_store(session.store, arm, study, create=True),
            build_job=build,
            title=f"{study.name}, {arm}",
        ).outcome()


def convert_all(study: Study, baseline: TrialRecord, plan: AttentionPlan) -> dict[str, str]:
    """Changes of the loss by conversion alone, with and without distillation, over the seeds."""
    from nas_attn.fairseq_tools.convert import convert_checkpoint

    found: dict[str, str] = {}
    for name, distil in (("converted", False), ("distilled", True)):
        changes, seconds = [], []
        for seed in study.config.training.seeds:
            trained = Path(str(baseline.folder)) / f"seed-{seed}" / START / BEST
            began = time.perf_counter()
            out = study.folder / "converted.pt"
            out.unlink(missing_ok=True)
            done = convert_checkpoint(
                trained, plan, out, data=study.data_folder, force=True, distil=distil
            )
            seconds.append(time.perf_counter() - began)
            assert done.losses is not None
            changes.append(done.losses[1] - done.losses[0])
        found[name] = f"{text_of(changes)} {statistics.median(seconds):.0f} s"
    return found


def text_of(changes: Sequence[float]) -> str:
    """Mean and the largest distance of a seed from it."""
    mean = statistics.fmean(changes)
    return f"{mean:+.4f} ({max(abs(change - mean) for change in changes):.4f})"


def change_of(losses: Sequence[float], untouched: Sequence[float]) -> str:
    return text_of([a - b for a, b in zip(losses, untouched, strict=True)])


def show(study: Study, *, converted: bool) -> None:
    """Print a line a plan, a column an arm."""
    store = TrialStore(
        study.name,
        open_storage(study.config.execution.storage, study.folder),
        study.objectives,
    )
    baseline = next(t for t in store.trials() if t.is_baseline and t.is_trained)
    columns: dict[str, dict[AttentionPlan, TrialRecord]] = {}
    for arm in ARMS:
        try:
            trials = arm_store(store, arm, study).trials()
        except SearchError:
            continue  # never trained
        columns[arm] = {t.plan: t for t in trials if t.plan is not None and t.is_trained}
    plans = {plan: trial for column in columns.values() for plan, trial in column.items()}
    losses = " ".join(f"{loss:.4f}" for loss in baseline.losses)
    print(f"baseline {baseline.cost:,} {study.objectives.primary_cost}, losses {losses}")
    for plan, trial in sorted(plans.items(), key=lambda item: item[1].cost or 0):
        cells = convert_all(study, baseline, plan) if converted else {}
        for arm, column in columns.items():
            if plan in column:
                done = column[plan]
                each = done.seconds / len(done.losses) if done.seconds else 0.0
                cells[arm] = f"{change_of(done.losses, baseline.losses)} {each:.0f} s"
        said = "  ".join(f"{name} {cell}" for name, cell in cells.items())
        print(f"{trial.cost:9,} {plan}: {said}", flush=True)


def match(study: Study, searches: Sequence[str]) -> None:
    """Print what searches of the same study made of the plans that all of them trained."""
    trained = {name: read_trials(study, name) for name in searches}
    plans = {name: {trial.plan: trial for trial in trials} for name, trials in trained.items()}
    untouched = {name: baseline_losses(study, name) for name in searches}
    seeds = min(len(losses) for losses in untouched.values())
    common = set.intersection(*(set(of_search) for of_search in plans.values()))
    first = plans[searches[0]]
    for plan in sorted(common, key=lambda plan: first[plan].cost or 0):
        texts = [
            f"{name} {change_of(plans[name][plan].losses[:seeds], untouched[name][:seeds])}"
            for name in searches
        ]
        print(f"{first[plan].cost:9,} {plan}: {'  '.join(texts)}")
    for name, trials in trained.items():
        print(f"{name}: {sum(trial.updates for trial in trials):,} updates in all")


def baseline_losses(study: Study, name: str) -> Sequence[float]:
    """The baseline's losses, seed by seed; arms have that of their run folder."""
    trials = read_trials(study, name.partition(" (")[0])
    return next(trial.losses for trial in trials if trial.is_baseline)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "show", "match"))
    parser.add_argument("study")
    parser.add_argument("searches", nargs="*", metavar="SEARCH", help="for `match`")
    parser.add_argument("--arm", action="append", default=[], choices=tuple(ARMS))
    parser.add_argument("--uniform", action="store_true", help="one scheme everywhere")
    parser.add_argument("--front", nargs=2, metavar=("SEARCH", "COUNT"))
    parser.add_argument("--trials", metavar="SEARCH", help="all plans that it trained")
    parser.add_argument("--plan", action="append", default=[], metavar="PLAN", help="JSON text")
    parser.add_argument("--converted", action="store_true", help="convert and measure, too")
    parser.add_argument("--name", default="inheritance", help="name of the run folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def main() -> None:
    options = parse()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = [f"name={options.name}", f"training.seeds={list(SEEDS)}", *options.set]
    study = load_study(options.study, overrides=own, runs=options.runs)
    actions: dict[str, Callable[[], None]] = {
        "train": lambda: train(study, options.arm, plans_of(study, options)),
        "show": lambda: show(study, converted=options.converted),
        "match": lambda: match(study, options.searches),
    }
    actions[options.what]()


def plans_of(study: Study, options: argparse.Namespace) -> list[AttentionPlan]:
    plans = uniform_plans(study) if options.uniform else []
    if options.trials:
        plans += plans_of_search(study, options.trials)
    if options.front:
        plans += smallest_of_front(study, options.front[0], int(options.front[1]))
    return [*plans, *(AttentionPlan.parse(text) for text in options.plan)]


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
