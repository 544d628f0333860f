"""What single conversions cost where caches are equal: keys and values grouped, apart, or tied.

    python benchmarks/equal_caches.py checkpoint_best.pt data-bin/multi30k

The checkpoint is of a trained fairseq transformer with multi-head attention. Each module is
converted alone by data, its output refitted, and the change of the validation loss is measured
sentence by sentence, so that its standard error is that of paired differences. Changes are added up
over the layers of a site. Choices with as many numbers a token in the cache stand together.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.attention.counting import build_on_meta
from nas_attn.conversion import RecordedCall
from nas_attn.fairseq_tools.convert import (
    calibration_calls,
    convert_trained,
    validation_losses,
)
from nas_attn.fairseq_tools.kept_outputs import KeptOutputs, Outputs, recording
from nas_attn.fairseq_tools.trained import TrainedModel, load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

Change = tuple[float, float]
"""Change of the loss in bits a token, and its standard error."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--most", type=int, help="largest cache tried, in numbers a token")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trained = load_trained(options.checkpoint)
    outputs: Outputs = {}
    with recording(trained, outputs):
        base = validation_losses(trained, options.data)
    calls = calibration_calls(trained, options.data)
    module = next(iter(trained.attention().values()))
    shape = SiteShape(num_layers=1, embed_dim=module.embed_dim, num_heads=module.num_heads)
    print(f"width {shape.embed_dim}, {shape.num_heads} heads, {base.mean:.4f} bits a token")
    print(f"{'cache':>5}  {'choice':52}", *(f"{site:>19}" for site in trained.layers()))
    kept = {choice: build_on_meta(choice, shape).cache_size() for choice in choices(shape)}
    most = options.most or max(kept.values())
    for choice in sorted((c for c in kept if kept[c] <= most), key=lambda choice: -kept[choice]):
        texts = []
        for site, count in trained.layers().items():
            changes = []
            for layer in range(count):
                model = converted(trained, site, layer, choice, calls)
                same = KeptOutputs(outputs, [f"{site}.{layer}"])
                changes.append(validation_losses(model, options.data, same).change_from(base))
            texts.append(f"{summed(changes):>19}")
        print(f"{kept[choice]:5}  {choice!s:52}", *texts, flush=True)


def choices(shape: SiteShape) -> Iterator[AttentionChoice]:
    """Ways to share, narrow or drop keys and values."""
    of, width, heads = AttentionChoice.of, shape.embed_dim, shape.num_heads
    groups = [number for number in range(1, heads + 1) if heads % number == 0]
    for keys, values in itertools.product(groups, groups):
        if keys == values < heads:
            yield of("grouped_query", num_groups=keys)
            yield of("grouped_query", num_groups=keys, tied=True)
        elif keys != values:
            yield of("grouped_query", num_groups=keys, num_value_groups=values)
    yield of("shared_key_value")
    for part in (2, 4, 8):
        if (width // part) % heads == 0:
            yield of("reduced_key", key_dim=width // part)
    yield from (of("none", output_bias=True), of("none"))


def converted(
    trained: TrainedModel,
    site: str,
    layer: int,
    choice: AttentionChoice,
    calls: dict[str, list[RecordedCall]],
) -> TrainedModel:
    """The model with one module converted."""
    layers = list(trained.plan.layers(site, trained.layers()[site]))
    layers[layer] = choice
    model = copy.deepcopy(trained)
    convert_trained(model, AttentionPlan.of({site: layers}), calls)
    return model


def summed(changes: Sequence[Change]) -> str:
    """The changes of a site's layers together, errors taken as independent."""
    change = math.fsum(change for change, _ in changes)
    return f"{change:+.4f} +- {math.hypot(*(error for _, error in changes)):.4f}"


if __name__ == "__main__":
    main()
