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
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.convert import calibration_calls, convert_trained
from nas_attn.fairseq_tools.ctranslate2_model import ctranslate2_tokens, write_ctranslate2
from nas_attn.fairseq_tools.formats import load_as_fairseq
from nas_attn.fairseq_tools.same_tokens import Probe, Tokens
from nas_attn.fairseq_tools.stock import stock_state
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


def fastest(translate: Callable[[], Tokens], repeats: int) -> tuple[Tokens, float]:
    """What is written, and the least CPU seconds of some rounds."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        tokens = translate()
        seconds.append(time.process_time() - start)
    return tokens, min(seconds)


def megabytes(path: Path) -> float:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def row(
    name: str, trained: TrainedModel, data: Path, out: Path, options: argparse.Namespace
) -> str:
    """A row of the table: sizes and speeds of one plan."""
    out.mkdir()
    stock, folder = out / "checkpoint.pt", out / "ctranslate2"
    save_checkpoint(stock_state(trained), stock)
    write_ctranslate2(trained, data, folder)
    probe = Probe(trained, data, options.sentences)
    model = load_as_fairseq(stock, data)
    ways: list[Callable[[], Tokens]] = [
        lambda: probe.tokens_of(trained.model),
        lambda: probe.tokens_of(model),
        lambda: ctranslate2_tokens(probe, folder),
    ]
    checks, seconds = [], []
    for way in ways:
        tokens, least = fastest(way, options.repeats)
        checks.append(probe.compare(tokens))
        seconds.append(least)
    speeds = " | ".join(f"{probe.count / one:.1f}" for one in seconds)
    sizes = f"{megabytes(stock):.2f} | {megabytes(folder):.2f}"
    return f"| {name} | {checks[-1]} | {sizes} | {speeds} | {seconds[1] / seconds[2]:.1f} |"


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
            try:
                trained = load_trained(options.checkpoint)
                calls = {} if options.blind else calibration_calls(trained, options.data)
                plan = AttentionPlan.uniform(choice, tuple(trained.layers()))
                convert_trained(trained, plan, calls)
                place = Path(folder, choice.scheme)
                print(row(name, trained, options.data, place, options), flush=True)
            except UsageError as error:
                print(f"| {name} | {error} |")


if __name__ == "__main__":
    main()
