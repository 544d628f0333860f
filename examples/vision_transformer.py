"""Attention that shares weights, inside a small vision transformer made of torch's own layers.

The images are generated: noise of 16 x 16 pixels with two glyphs in it, and the question is whether
the two are the same. No single patch decides, so the answer goes through attention.

    python examples/vision_transformer.py --scheme collaborative

trains for a minute and prints the accuracy on unseen images. Every scheme of nas-attn works:
multi-head attention is replaced where torch keeps it, in `TransformerEncoderLayer.self_attn`.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.attention import SCHEMES, build_attention

PATCH, GRID, GLYPHS = 4, 4, 6


def make_images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 16, 16) and labels (count): 1 if the two glyphs are the same."""
    glyphs = torch.randn(GLYPHS, PATCH, PATCH, generator=torch.Generator().manual_seed(7)).sign()
    same = torch.rand(count, generator=generator) < 0.5
    first = torch.randint(GLYPHS, (count,), generator=generator)
    shift = torch.randint(1, GLYPHS, (count,), generator=generator)
    second = torch.where(same, first, (first + shift) % GLYPHS)
    places = torch.rand(count, GRID * GRID, generator=generator).argsort(dim=1)[:, :2]
    patches = 0.5 * torch.randn(count, GRID * GRID, PATCH, PATCH, generator=generator)
    rows = torch.arange(count)
    for glyph, place in ((first, places[:, 0]), (second, places[:, 1])):
        patches[rows, place] += glyphs[glyph]
    grid = patches.view(count, GRID, GRID, PATCH, PATCH).transpose(2, 3)
    return grid.reshape(count, GRID * PATCH, GRID * PATCH), same.long()


class VisionTransformer(nn.Module):
    """Patches, positions, torch's encoder layers with another attention, mean, two classes.

    Args:
        scheme: Name of the attention scheme.
        width: Width of a token.
        num_heads: Number of heads of each layer.
        num_layers: Number of encoder layers.
        options: Options of the scheme.
    """

    def __init__(
        self,
        scheme: str,
        width: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        **options: object,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, width)
        self.positions = nn.Parameter(0.02 * torch.randn(GRID * GRID, width))
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            layer = nn.TransformerEncoderLayer(
                width, num_heads, 2 * width, 0.0, batch_first=True, norm_first=True
            )
            layer.self_attn = build_attention(scheme, width, num_heads, **options)
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).flatten(1, 2)
        tokens = self.embed(patches) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


def train(model: nn.Module, steps: Iterator[int], seed: int) -> int:
    """Train on fresh images for the given steps; returns how many they were."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    taken = 0
    for taken in steps:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, taken / 100)
        images, labels = make_images(128, generator)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return taken


@torch.no_grad()
def accuracy(model: nn.Module, count: int = 4000) -> float:
    """Fraction of unseen images that are classified right."""
    images, labels = make_images(count, torch.Generator().manual_seed(10**6))
    model.eval()
    return float((model(images).argmax(dim=1) == labels).float().mean())


def steps_for(seconds: float) -> Iterator[int]:
    """1, 2, ... until the time is over, which starts with the first step."""
    yield 1
    began = time.monotonic()
    for step in itertools.count(2):
        if time.monotonic() - began > seconds:
            return
        yield step


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small vision transformer for a minute.")
    parser.add_argument("--scheme", choices=SCHEMES, default="collaborative")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = VisionTransformer(args.scheme)
    attention = sum(p.numel() for layer in model.layers for p in layer.self_attn.parameters())
    steps = train(model, steps_for(args.seconds), args.seed)
    print(
        f"{args.scheme}: {attention:,} attention parameters, accuracy {accuracy(model):.1%} "
        f"after {steps} steps in {args.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
