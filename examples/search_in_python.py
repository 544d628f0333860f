"""A search from Python, as in a notebook: a small front, its figure, a report, a model to keep.

Trains a tiny translation model on made-up data, predicts which attention would do, fine-tunes five
such models, and trains those on the front from scratch with two more seeds: minutes on two cores;
with --quick, a rehearsal that predicts nothing, one.

    python examples/search_in_python.py --out my_search

The command goes on with the same study, and the other way round:

    nas-attn search demo --trials 9 --runs my_search/runs --set data.folder=my_search/data
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import nas_attn

QUICK: dict[str, Any] = {
    "data": {"demo": {"seed": 1, "train_sentences": 500}},
    "training": {"arguments": {"max-epoch": 1}},
    # Of a model that has learned nothing, nothing can be predicted.
    "search": {"strategy": "sampler", "warm_start": "none"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A search from Python, as in a notebook.")
    parser.add_argument("--out", type=Path, default=Path("runs/search_in_python"))
    parser.add_argument("--quick", action="store_true", help="one epoch, little data")
    arguments = parser.parse_args()
    out: Path = arguments.out
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("nas_attn").setLevel(logging.INFO)  # says how far the search is

    overrides = dict(QUICK) if arguments.quick else {}
    overrides["data"] = {**overrides.get("data", {}), "folder": str(out / "data")}
    trials = 3 if arguments.quick else 6
    results = nas_attn.search("demo", trials=trials, overrides=overrides, runs=out / "runs")
    print(results)

    front = results.front()
    print(front[["trial", "plan", "cost", "loss", "cost_change", "loss_change"]].to_string())
    results.plot_front().figure.savefig(out / "front.png")

    confirmed = results.confirm(seeds=2)
    print(confirmed[["trial", "plan", "score", "mean", "error"]].to_string())

    smallest = int(front.loc[front["cost"].idxmin(), "trial"])
    print("report:", results.report(out / "report"))
    print("model: ", results.export(out / "model", trial=smallest).folder)


if __name__ == "__main__":
    main()
