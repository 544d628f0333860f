"""What latent attention costs: loss at equal caches, and where queries take maps over.

    python benchmarks/latent.py damage checkpoint_best.pt data-bin/multi30k
    python benchmarks/latent.py speed

`damage` converts the layers of one site of a trained fairseq transformer with multi-head attention
by data, and measures the change of the validation loss with the standard error of paired sentences;
choices with as many numbers a token in the cache stand together. `speed` times attention to latents
as they are (`absorbed`) beside keys and values made of them, over the products that each takes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.attention import build_attention
from nas_attn.attention.counting import build_on_meta
from nas_attn.attention.functional import Implementation
from nas_attn.fairseq_tools.convert import calibration_calls, convert_trained, validation_losses
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

WIDTH, HEADS, ROUNDS = 512, 8, 9
SHAPES = [
    (16, 1, 16), (16, 1, 512), (16, 5, 32), (16, 5, 128), (4, 16, 64), (4, 16, 256), (4, 32, 32),
    (2, 64, 64), (2, 64, 256), (2, 256, 256),
]  # fmt: skip
"""Sequences, queries and tokens attended to."""


def damage(checkpoint: Path, data: Path, parts: list[int]) -> None:
    """Print what conversions of whole sites change in the validation loss."""
    trained = load_trained(checkpoint)
    base, calls = validation_losses(trained, data), calibration_calls(trained, data)
    module = next(iter(trained.attention().values()))
    shape = SiteShape(num_layers=1, embed_dim=module.embed_dim, num_heads=module.num_heads)
    print(f"width {shape.embed_dim}, {shape.num_heads} heads, {base.mean:.4f} bits a token")
    sites = list(trained.layers())
    print(f"{'cache':>5}  {'choice':28}", *(f"{site:>19}" for site in sites))
    kept = {choice: build_on_meta(choice, shape).cache_size() for choice in choices(shape, parts)}
    for choice in sorted(kept, key=lambda choice: -kept[choice]):
        texts = []
        for site in sites:
            model = copy.deepcopy(trained)
            convert_trained(model, AttentionPlan.of({site: choice}), calls)
            change, error = validation_losses(model, data).change_from(base)
            texts.append(f"{change:+.4f} +- {error:.4f}")
        print(f"{kept[choice]:5}  {choice!s:28}", *(f"{text:>19}" for text in texts), flush=True)


def choices(shape: SiteShape, parts: list[int]) -> Iterator[AttentionChoice]:
    """Latents, and what shares or narrows keys and values otherwise."""
    of, width, heads = AttentionChoice.of, shape.embed_dim, shape.num_heads
    yield from (of("latent", latent_dim=width // part) for part in (1, *parts))
    yield from (of("grouped_query", num_groups=g) for g in range(1, heads) if heads % g == 0)
    yield from (of("reduced_key", key_dim=width // p) for p in parts if width // p % heads == 0)


def speed(latent_dims: list[int]) -> None:
    """Print times of one call, medians of turns, and the shares of products."""
    print(f"width {WIDTH}, {HEADS} heads, {torch.get_num_threads()} threads, milliseconds")
    print("latent  sequences x queries x tokens  absorbed    made  of its time  of its products")
    for latent_dim in latent_dims:
        module = build_attention("latent", WIDTH, HEADS, latent_dim=latent_dim).eval()
        for batch, queries, keys in SHAPES:
            x, latents = torch.randn(batch, queries, WIDTH), torch.randn(batch, 1, keys, latent_dim)
            taken: dict[Implementation, list[float]] = {"absorbed": [], "fused": []}
            for _ in range(ROUNDS):
                for implementation, times in taken.items():
                    module.implementation = implementation
                    began = time.process_time()
                    with torch.no_grad():
                        module.attend(x, latents, latents[..., :0])
                    times.append(time.process_time() - began)
            absorbed, made = (1e3 * statistics.median(times[1:]) for times in taken.values())
            products = queries * latent_dim * (WIDTH + HEADS * keys)
            share = products / (keys * WIDTH * (latent_dim + queries))
            print(
                f"{latent_dim:6}  {f'{batch} x {queries} x {keys}':>28}  {absorbed:8.2f}"
                f"  {made:6.2f}  {absorbed / made:11.2f}  {share:15.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["damage", "speed"])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "speed":
        speed([WIDTH // part for part in options.parts])
    elif options.data is None:
        parser.error("damage needs a checkpoint and its data set")
    else:
        damage(options.checkpoint, options.data, options.parts)


if __name__ == "__main__":
    main()
