"""The examples do what their first lines say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from examples.vision_transformer import VisionTransformer, accuracy, make_images, train
from nas_attn.attention import SCHEMES
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

STEPS = range(1, 301)


def test_images() -> None:
    images, labels = make_images(2000, torch.Generator().manual_seed(1))
    assert images.shape == (2000, 16, 16)
    assert 0.45 < float(labels.double().mean()) < 0.55


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(s, marks=[pytest.mark.long] if n % 3 else [])
        for n, s in enumerate(sorted(set(SCHEMES) - {"none"}))
    ],
)
def test_a_vision_transformer_learns_with_every_scheme(scheme: str) -> None:
    torch.manual_seed(1)
    model = VisionTransformer(scheme)
    assert train(model, iter(STEPS), seed=1) == len(STEPS)
    assert accuracy(model) > 0.8


def test_no_vision_transformer_learns_without_attention() -> None:
    torch.manual_seed(1)
    model = VisionTransformer("none")
    train(model, iter(STEPS), seed=1)
    assert accuracy(model) < 0.6


def test_the_command() -> None:
    command = [sys.executable, "examples/vision_transformer.py", "--scheme", "multi_query"]
    done = subprocess.run(
        [*command, "--seconds", "2"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("multi_query: 20,800 attention parameters, accuracy ")
