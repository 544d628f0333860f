"""Seconds from a chosen trial to its first update: a process from nothing against a warm start.

    python benchmarks/start_up.py                 # 10 rounds, each a cold and a warm start
    python benchmarks/start_up.py --rounds 3 --threads 2

Trials train a tiny Transformer on the demo's corpus and are stopped after the first update, so all
that is measured is what comes before: imports, or a fork, then reading data and building the model.
The server of warm starts is started once, and apart from the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.fairseq_tools.commands import training_command
from nas_attn.fairseq_tools.config import TrainingConfig
from nas_attn.fairseq_tools.data import prepare
from nas_attn.fairseq_tools.demo_data import LANGUAGES, make_demo_corpus
from nas_attn.plan import SITES, AttentionChoice, AttentionPlan
from nas_attn.trials.job import SeedRun, TrialJob
from nas_attn.trials.layout import LOG_FILE
from nas_attn.trials.processes.fork_server import ForkServer
from nas_attn.trials.processes.launch import ColdLauncher, Launcher
from nas_attn.trials.runner import TrialRun

ARGUMENTS = {
    "criterion": "label_smoothed_cross_entropy",
    "optimizer": "adam",
    "lr": 0.003,
    "max-tokens": 512,
    "max-epoch": 100,
    "num-workers": 0,
    "log-interval": 1,
    "share-all-embeddings": True,
    "encoder-layers": 2,
    "decoder-layers": 2,
    "encoder-embed-dim": 32,
    "decoder-embed-dim": 32,
    "encoder-ffn-embed-dim": 64,
    "decoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 4,
    "decoder-attention-heads": 4,
}
FIRST_UPDATE = b"num_updates=1,"
LOOK_SECONDS = 0.005
PATIENCE_SECONDS = 120.0


def make_job(folder: Path, *, sentences: int, threads: int) -> TrialJob:
    """A training that goes on until it is stopped, with its data."""
    corpus = make_demo_corpus(seed=1, train_sentences=sentences)
    data = prepare(corpus, LANGUAGES, folder / "data", vocab_size=200, subword="word")
    run = folder / "cold"
    command = training_command(
        TrainingConfig(arguments=ARGUMENTS),
        data,
        AttentionPlan.uniform(AttentionChoice("multi_head"), SITES),
        seed=1,
        metric="loss",
        save_dir=run / "checkpoints",
    )
    return TrialJob(
        number=1,
        folder=str(run),
        metric="loss",
        parameters=0,  # compared at the end of a training, which is not waited for
        runs=(SeedRun(seed=1, folder=str(run), command=tuple(command)),),
        threads=threads,
    )


def in_folder(job: TrialJob, name: str) -> TrialJob:
    """The same trial in a folder of its own."""
    (run,) = job.runs
    folder = str(Path(job.folder).with_name(name))
    command = tuple(part.replace(job.folder, folder) for part in run.command)
    moved = dataclasses.replace(run, folder=folder, command=command)
    return dataclasses.replace(job, folder=folder, runs=(moved,))


def seconds_to_first_update(job: TrialJob, launcher: Launcher) -> float:
    """Start a trial, wait for its first update and stop it.

    Raises:
        SystemExit: the training ended, or made no update in time.
    """
    log = Path(job.runs[0].folder) / LOG_FILE
    began = time.perf_counter()
    trial = TrialRun(job, launcher=launcher)
    try:
        while trial.result is None:
            trial.poll()
            seconds = time.perf_counter() - began
            if log.is_file() and FIRST_UPDATE in log.read_bytes():
                return seconds
            if seconds > PATIENCE_SECONDS:
                sys.exit(f"no update in {PATIENCE_SECONDS:.0f} s; see {log}")
            time.sleep(LOOK_SECONDS)
    finally:
        trial.stop()
    sys.exit(trial.result.error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="a cold and a warm start in each")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a training")
    parser.add_argument("--sentences", type=int, default=2000, help="to train on")
    given = parser.parse_args()
    launchers: dict[str, Launcher] = {"cold": ColdLauncher(), "warm": ForkServer()}
    seconds: dict[str, list[float]] = {name: [] for name in launchers}
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), sentences=given.sentences, threads=given.threads)
        try:
            server = seconds_to_first_update(in_folder(job, "server"), launchers["warm"])
            print("seconds from 'trial chosen' to 'first update'")
            print(f"{'round':>8}{'cold process':>14}{'warm worker':>14}{'ratio':>8}")
            for number in range(1, given.rounds + 1):
                for name, launcher in launchers.items():
                    trial = in_folder(job, f"{name}-{number}")
                    seconds[name].append(seconds_to_first_update(trial, launcher))
                print_row(str(number), seconds["cold"][-1], seconds["warm"][-1])
        finally:
            launchers["warm"].close()
    print_row("median", *(statistics.median(values) for values in seconds.values()))
    print(f"once, with the start of the warm worker's server: {server:.2f} s")


def print_row(name: str, cold: float, warm: float) -> None:
    print(f"{name:>8}{cold:>14.2f}{warm:>14.2f}{cold / warm:>7.1f}x", flush=True)


if __name__ == "__main__":
    main()
