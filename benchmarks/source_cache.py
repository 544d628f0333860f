"""What decoding takes with keys and values of the source, and with the encoder's output kept once.

    python benchmarks/source_cache.py
    python benchmarks/source_cache.py --schemes multi_head single_head --lengths 256 1024

fairseq's generator translates random sources by a Transformer with random weights, by both ways in
turns: seconds (CPU time if there is one thread), and by how much memory grows at most (on a GPU
what torch allocates, else resident memory). Both ways have to write the same words.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator

from nas_attn.attention.registry import SCHEMES
from nas_attn.fairseq_tools.models import blank_dictionary, parse_architecture

BEAM, ROUNDS, VOCABULARY, MEBIBYTE = 5, 3, 1000, 2**20
WAYS = ("keys_values", "output")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Taken(NamedTuple):
    """What it takes to translate a batch."""

    seconds: float
    mebibytes: float
    words: list[list[int]]


def main() -> None:
    """Print a row for each scheme, length of the source, and number of words."""
    options = read_options()
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{where}, {torch.get_num_threads()} thread(s), width {options.width}, "
        f"{options.heads} heads, {options.layers} layers in the decoder, beam {BEAM}, "
        f"{options.sentences} sentences"
    )
    print(
        f"{'':18} {'source':>7} {'words':>7}   {'keys, values':16}   {'output':16}   output of keys"
    )
    titles = f"{'seconds':>8} {'MiB':>7}   " * 2
    print(
        f"{'scheme':18} {'tokens':>7} {'written':>7} {titles}{'seconds':>8} {'MiB':>5}  same words"
    )
    for scheme in options.schemes:
        model, dictionary = random_model(scheme, options)
        for length in options.lengths:
            for words in options.words:
                found = translate_in_turns(model, dictionary, length, words, options)
                print(row(scheme, length, words, found), flush=True)


def read_options() -> Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--schemes", nargs="+", choices=sorted(SCHEMES), default=["multi_head"])
    add("--lengths", nargs="+", type=int, default=[32, 256, 1024], help="tokens of a source")
    add("--words", nargs="+", type=int, default=[4, 32], help="words that are written for each")
    add("--width", type=int, default=512)
    add("--heads", type=int, default=8)
    add("--layers", type=int, default=6)
    add("--sentences", type=int, default=8)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def random_model(scheme: str, options: Namespace) -> tuple[Any, Any]:
    """A Transformer that attends to its source by a scheme, and the dictionary of its words."""
    torch.manual_seed(1)
    dictionary = blank_dictionary(VOCABULARY)
    flags = [f"--{side}-embed-dim={options.width}" for side in ("encoder", "decoder")]
    flags += [f"--{side}-attention-heads={options.heads}" for side in ("encoder", "decoder")]
    flags += ["--encoder-layers=2", f"--decoder-layers={options.layers}", "--share-all-embeddings"]
    flags += [f"--max-source-positions={max(options.lengths)}"]
    flags += [f'--attention-plan={{"encoder_decoder": {{"scheme": "{scheme}"}}}}']
    args = parse_architecture("multi_head_transformer", flags)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model: Any = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    return model.eval().to(options.device), dictionary


def translate_in_turns(
    model: Any, dictionary: Any, length: int, words: int, options: Namespace
) -> dict[str, Taken]:
    """What each way takes, medians; the first turn, which makes room, is left out."""
    source = torch.randint(4, VOCABULARY, (options.sentences, length), device=options.device)
    source[:, -1] = dictionary.eos()
    sample = {
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.full((options.sentences,), length, device=options.device),
        }
    }
    how = {"beam_size": BEAM, "min_len": words, "max_len_a": 0, "max_len_b": words}
    generator = SequenceGenerator([model], dictionary, **how)
    taken: dict[str, list[Taken]] = {way: [] for way in WAYS}
    for _ in range(1 + ROUNDS):
        for way, turns in taken.items():
            model.decoder.keep_of_source(way)
            turns.append(translate(generator, model, sample, options.device))
    return {way: median(turns[1:]) for way, turns in taken.items()}


def translate(generator: Any, model: Any, sample: dict[str, Any], device: str) -> Taken:
    """Translate a batch once."""
    before = start_of_peak(device)
    began = now(device)
    found = generator.generate([model], sample)
    seconds = now(device) - began
    return Taken(seconds, peak(device) - before, [s[0]["tokens"].tolist() for s in found])


def median(turns: Sequence[Taken]) -> Taken:
    """Medians of turns, which all wrote the same."""
    seconds = statistics.median(turn.seconds for turn in turns)
    return Taken(seconds, statistics.median(turn.mebibytes for turn in turns), turns[0].words)


def row(scheme: str, length: int, words: int, found: dict[str, Taken]) -> str:
    """A line of the table."""
    kept, output = (found[way] for way in WAYS)
    same = sum(a == b for a, b in zip(kept.words, output.words, strict=True))
    return (
        f"{scheme:18} {length:7} {words:7} {kept.seconds:8.3f} {kept.mebibytes:7.1f}   "
        f"{output.seconds:8.3f} {output.mebibytes:7.1f}   {output.seconds / kept.seconds:8.2f} "
        f"{output.mebibytes / max(kept.mebibytes, 1e-9):5.2f}  {same} of {len(kept.words)}"
    )


def now(device: str) -> float:
    """Seconds of a clock."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def start_of_peak(device: str) -> float:
    """MiB that there are now; from here on the most is looked for."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MEBIBYTE
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there any more
    CLEAR.write_text("5", encoding="ascii")  # the peak of resident memory is what there is
    return peak(device)


def peak(device: str) -> float:
    """The most MiB since `start_of_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
