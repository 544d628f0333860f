"""How a search grows: driver seconds and bytes a trial, seconds of a report and of a restart.

    python benchmarks/scale.py                              # 200, 2,000 and 20,000 trials, 1,000
    workers python benchmarks/scale.py --trials 200 2000 --sampler tpe

Trials replay made-up learning curves in virtual time, so all that is measured is the driver:
proposals, record, stopping rule. Every size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

COLUMNS = {
    "trials": ",d",
    "driver s": ".1f",
    "ms/trial": ".2f",
    "ms/trial, last tenth": ".2f",
    "storage kB/trial": ".2f",
    "restart s": ".2f",
    "report s": ".2f",
    "report MB": ".1f",
    "memory MB": ",.0f",
    "front": "d",
    "stopped": ",d",
}


def study_of(trials: int, workers: int, sampler: str, folder: Path) -> dict[str, Any]:
    """A study of per-layer plans of a small translation model."""
    arguments = {
        "criterion": "label_smoothed_cross_entropy",
        "share-all-embeddings": True,
        "encoder-layers": 3,
        "decoder-layers": 3,
        "encoder-embed-dim": 256,
        "decoder-embed-dim": 256,
        "encoder-attention-heads": 4,
        "decoder-attention-heads": 4,
        "max-tokens": 2000,
        "max-epoch": 10,
    }
    return {
        "name": "scale",
        "data": {"folder": str(folder / "data"), "demo": {"train_sentences": 500}},
        "training": {"arguments": arguments},
        "space": "per_layer",
        "search": {"trials": trials, "sampler": sampler, "stopping": {"rule": "halving"}},
        "execution": {"executor": "simulated", "workers": workers},
        "replay": {"validations": 9},
    }


def measure(trials: int, workers: int, sampler: str, folder: Path) -> dict[str, float]:
    """Run a search of one size, a restart and a report."""
    import optuna
    import yaml

    from nas_attn.analysis.trials import Trials
    from nas_attn.engine.executors.simulated import SimulatedExecutor
    from nas_attn.engine.leases import TrialLeases
    from nas_attn.engine.loop import SearchLoop
    from nas_attn.engine.snapshot import Snapshot
    from nas_attn.engine.storage import JOURNAL, open_storage
    from nas_attn.engine.store import TrialStore
    from nas_attn.report import ReportContext, write_report
    from nas_attn.study.loading import load_study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.INFO)
    file = folder / "scale.yaml"
    file.write_text(yaml.safe_dump(study_of(trials, workers, sampler, folder)))
    study = load_study(str(file), runs=folder / "runs")
    study.prepare_data()

    def loop() -> SearchLoop:
        storage = open_storage(None, study.folder)
        store = TrialStore("scale", storage, study.objectives, create=True)
        beats = {"heartbeat_seconds": 20.0, "grace_seconds": 120.0}
        return SearchLoop(
            store=store,
            leases=TrialLeases(store, study.folder, **beats),
            proposer=study.proposer(),
            config=study.config.search,
            build_job=study.jobs.search_trial,
        )

    marks: list[tuple[int, float]] = []

    def watch(make: Any) -> None:
        nonlocal over
        over += 1
        if over % max(1, trials // 20) == 0:
            snapshot: Snapshot = make()
            marks.append((snapshot.over, time.process_time()))

    over = 0
    running = loop()
    running.on_change = watch
    began, wall = time.process_time(), time.perf_counter()
    SimulatedExecutor(workers).run(running)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    snapshot = running.snapshot()
    running.leases.close()
    last = [mark for mark in marks if mark[0] >= 0.9 * trials]
    late = (last[-1][1] - last[0][1]) / max(1, last[-1][0] - last[0][0]) if len(last) > 1 else 0.0

    began = time.perf_counter()
    again = loop()
    assert again.next_job() is None
    restart = time.perf_counter() - began
    trials_read = Trials(again.store.trials(), study.objectives)
    again.leases.close()

    context = ReportContext(
        name="scale",
        description="",
        seeds=1,
        settings={},
        versions=dict.fromkeys(("nas-attn", "torch", "optuna", "fairseq-fixed"), ""),
        machine="",
        evaluate={},
    )
    began = time.perf_counter()
    page = write_report(trials_read, context, folder / "report")
    report = time.perf_counter() - began
    return {
        "trials": snapshot.over,
        "driver s": wall,
        "ms/trial": 1000 * seconds / trials,
        "ms/trial, last tenth": 1000 * late,
        "storage kB/trial": (study.folder / JOURNAL).stat().st_size / trials / 1000,
        "restart s": restart,
        "report s": report,
        "report MB": page.stat().st_size / 1e6,
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "front": len(snapshot.front),
        "stopped": snapshot.stopped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[200, 2000, 20000])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--sampler", default="stratified_random")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        found = measure(options.trials[0], options.workers, options.sampler, options.one)
        print(json.dumps(found))
        return
    print(f"{options.sampler}, {options.workers:,} workers, journal file, early stopping")
    print("  ".join(COLUMNS))
    for trials in options.trials:
        with tempfile.TemporaryDirectory(prefix="nas-attn-scale-") as folder:
            command = [sys.executable, __file__, "--trials", str(trials), "--one", folder]
            command += ["--workers", str(options.workers), "--sampler", options.sampler]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [format(found[name], form).rjust(len(name)) for name, form in COLUMNS.items()]
        print("  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
