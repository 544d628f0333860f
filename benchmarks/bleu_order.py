"""Whether the order of trained plans by loss is their order by BLEU.

    python benchmarks/bleu_order.py multi30k_sensitivity --name tpe_cold --count 24

Translates the validation split (beam 5) by the checkpoints of trained trials of a search, spread
evenly over the exact cost axis, and prints loss and BLEU of each, and Kendall's tau of the two
with an interval of 95 % (plans drawn again, with replacement, 2,000 times). What was translated
before stands in bleu.jsonl in the run folder, and is not translated again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.engine.storage import open_storage
from nas_attn.engine.store import TrialStore
from nas_attn.engine.trial_record import TrialRecord
from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.commands import evaluation_command
from nas_attn.rank_agreement import kendall
from nas_attn.study.loading import load_study
from nas_attn.study.study import Study
from nas_attn.trials.layout import BEST
from nas_attn.trials.processes.programs import executable_form
from nas_attn.trials.scores import parse_scores

TIMES = 2000


def translate(study: Study, trial: TrialRecord) -> float:
    """BLEU of a trial's checkpoint on the validation split.

    Raises:
        NasAttnError: it cannot be had.
    """
    seed = study.config.training.seeds[0]
    checkpoint = Path(str(trial.folder)) / f"seed-{seed}" / "checkpoints" / BEST
    tokenizer = study.config.objectives.bleu_tokenizer
    command = evaluation_command(
        study.config.training, study.data_set, checkpoint, "valid", tokenizer
    )
    threads = {**os.environ, "OMP_NUM_THREADS": str(study.config.resources.cpus)}
    done = subprocess.run(
        executable_form(command), capture_output=True, text=True, env=threads, check=False
    )
    if done.returncode:
        raise NasAttnError(f"trial {trial.number}: {done.stderr[-1000:]}")
    return parse_scores(done.stdout + done.stderr)["bleu"]


def spread(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """So many trials from the smallest to the largest."""
    ordered = sorted(trials, key=lambda trial: trial.cost or 0)
    if count >= len(ordered):
        return ordered
    return [ordered[round(n * (len(ordered) - 1) / (count - 1))] for n in range(count)]


def interval(losses: Sequence[float], scores: Sequence[float]) -> tuple[float, float]:
    """Of 95 % of Kendall's tau, plans drawn again with replacement."""
    generator = random.Random(1)
    taus = []
    for _ in range(TIMES):
        drawn = generator.choices(range(len(losses)), k=len(losses))
        taus.append(kendall([losses[i] for i in drawn], [scores[i] for i in drawn]))
    taus.sort()
    return taus[TIMES // 40], taus[-TIMES // 40]


def compare(study: Study, count: int) -> None:
    storage = open_storage(study.config.execution.storage, study.folder)
    trials = TrialStore(study.name, storage, study.objectives).trials()
    kept = study.folder / "bleu.jsonl"
    lines = kept.read_text().splitlines() if kept.is_file() else []
    known = {line["trial"]: line["bleu"] for line in map(json.loads, lines)}
    losses, scores = [], []
    print("trial  parameters    loss   BLEU")
    for trial in spread([trial for trial in trials if trial.is_trained], count):
        if trial.number not in known:
            known[trial.number] = translate(study, trial)
            with kept.open("a") as file:
                file.write(json.dumps({"trial": trial.number, "bleu": known[trial.number]}) + "\n")
        losses.append(-(trial.loss or 0.0))
        scores.append(known[trial.number])
        row = f"{trial.number:5} {trial.cost:11,} {trial.loss:.4f} {scores[-1]:6.2f}"
        print(row, flush=True)
    low, high = interval(losses, scores)
    tau = kendall(losses, scores)
    print(f"{len(losses)} plans: tau {tau:.2f} (95 %: {low:.2f} to {high:.2f}) of loss and BLEU")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--name", help="name of the search, if not the study's")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = [f"name={options.name}"] if options.name else []
    compare(
        load_study(options.study, overrides=[*own, *options.set], runs=options.runs), options.count
    )


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
