"""Deploy one trained translation model, as fairseq has it and for CTranslate2, under four plans.

    python benchmarks/deployment.py CHECKPOINT DATA [--sentences 50] [--repeats 3] [--blind]

CHECKPOINT is of multi-head attention, fairseq's own or the plugin's. It is converted to each plan
(calibrated on DATA unless --blind), exported for stock fairseq and for CTranslate2, and each export
must write the tokens that fairseq writes of the model. All translate the same validation sentences
with a beam of 5 on one CPU thread; the fastest of some rounds counts. What is taken is CPU time of
the process, in which other work on the machine does not count; CTranslate2's has the loading of its
model in it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

warnings.simplefilter("ignore")  # of fairseq's modules, as they are imported

from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.convert import convert_checkpoint
from nas_attn.fairseq_tools.ctranslate2_model import ctranslate2_tokens
from nas_attn.fairseq_tools.formats import CHECKPOINT, Format, load_as_fairseq, write_model
from nas_attn.fairseq_tools.same_tokens import Probe
from nas_attn.fairseq_tools.trained import TrainedModel, load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan


def plans(trained: TrainedModel) -> dict[str, AttentionChoice]:
    """The plans: half as many groups as heads, and a shared space as wide as one head."""
    module = next(iter(trained.attention().values()))
    heads, width = module.num_heads, module.head_dim
    of = AttentionChoice.of
    return {
        "multi_head": of("multi_head"),
        "grouped_query": of("grouped_query", num_groups=max(1, heads // 2)),
        "multi_query": of("multi_query"),
        f"collaborative({width})": of("collaborative", shared_dim=width),
    }


def fastest(translate: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of some rounds."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        translate()
        seconds.append(time.process_time() - start)
    return min(seconds)


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def row(
    name: str, trained: TrainedModel, data: Path, out: Path, options: argparse.Namespace
) -> str:
    """A row of the table: sizes and speeds of one plan."""
    made: dict[Format, str] = {}
    for form in ("fairseq", "ctranslate2"):
        (out / form).mkdir(parents=True)
        made[form] = str(write_model(trained, data, out / form, form))
    probe = Probe(trained, data, options.sentences)
    stock = load_as_fairseq(out / "fairseq" / CHECKPOINT, data)
    seconds = {
        "plugin": fastest(lambda: probe.tokens_of(trained.model), options.repeats),
        "fairseq": fastest(lambda: probe.tokens_of(stock), options.repeats),
        "ctranslate2": fastest(
            lambda: ctranslate2_tokens(probe, out / "ctranslate2"), options.repeats
        ),
    }
    speeds = " | ".join(f"{probe.count / one:.1f}" for one in seconds.values())
    sizes = f"{megabytes(out / 'fairseq'):.2f} | {megabytes(out / 'ctranslate2'):.2f}"
    factor = seconds["fairseq"] / seconds["ctranslate2"]
    return f"| {name} | {made['ctranslate2']} | {sizes} | {speeds} | {factor:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sentences", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blind", action="store_true", help="convert by weights alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    import ctranslate2

    print(
        f"{platform.processor() or platform.machine()}, one thread; torch {torch.__version__}, "
        f"CTranslate2 {ctranslate2.__version__}; beam 5, {options.sentences} validation sentences\n"
    )
    print(
        "| plan | CTranslate2 against fairseq | MB, stock fairseq | MB, CTranslate2 | "
        "sentences/s, our plugin | sentences/s, stock fairseq | sentences/s, CTranslate2 | ratio |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, choice in plans(load_trained(options.checkpoint)).items():
            path = Path(folder, f"{choice.scheme}.pt")
            data = None if options.blind else options.data
            try:
                trained = load_trained(options.checkpoint)
                plan = AttentionPlan.uniform(choice, tuple(trained.layers()))
                convert_checkpoint(options.checkpoint, plan, path, data=data)
                place = Path(folder, choice.scheme)
                print(row(name, load_trained(path), options.data, place, options), flush=True)
            except UsageError as error:
                print(f"| {name} | {error} |")


if __name__ == "__main__":
    main()
