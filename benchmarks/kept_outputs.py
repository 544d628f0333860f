"""What a measurement saves by not computing again what a conversion leaves as it was.

    python benchmarks/kept_outputs.py checkpoint_best.pt DATA

Passes over the validation split, with kept outputs of layers and without, in turns, as if each
attention module alone were converted; CPU seconds of one thread, medians. What a pass takes does
not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.errors import NasAttnError
from nas_attn.fairseq_tools.convert import validation_losses
from nas_attn.fairseq_tools.kept_outputs import KeptOutputs, Outputs, recording
from nas_attn.fairseq_tools.trained import load_trained


def compare(checkpoint: Path, data: Path, rounds: int) -> None:
    trained = load_trained(checkpoint)
    outputs: Outputs = {}
    with recording(trained, outputs):
        whole = validation_losses(trained, data)
    places = list(trained.attention())
    taken: dict[str, list[list[float]]] = {place: [[], []] for place in places}
    for _ in range(rounds):
        for place in places:
            for which, kept in enumerate((None, KeptOutputs(outputs, [place]))):
                began = time.process_time()
                losses = validation_losses(trained, data, kept)
                taken[place][which].append(time.process_time() - began)
                assert losses.sums == whole.sums, "kept outputs change no bit"
    sums = [0.0, 0.0]
    for place, both in taken.items():
        without, with_kept = map(statistics.median, both)
        sums[0] += without
        sums[1] += with_kept
        print(f"{place:20} {without:6.2f} s {with_kept:6.2f} s {with_kept / without - 1:+.0%}")
    print(f"{'all':20} {sums[0]:6.2f} s {sums[1]:6.2f} s {sums[1] / sums[0] - 1:+.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        compare(options.checkpoint, options.data, options.rounds)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
