"""Linear layers in bfloat16: their products alone, in training alone, teachers included."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_plugin.bfloat16 import BFloat16Linear, Linear
from nas_attn.attention import SCHEMES
from nas_attn.fairseq_tools.models import blank_dictionary, parse_architecture
from tests.helpers.devices import devices

SIDES = {
    "transformer": ("encoder", "decoder"),
    "transformer_lm": ("decoder",),
    "roberta": ("encoder",),
}
RELATIVE = 0.08
"""Of the norm; what is multiplied has 8 bits, in every layer."""
STILL = ("--dropout=0", "--attention-dropout=0")


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(tensor: Tensor) -> Tensor:
    """What bfloat16 keeps, in float64."""
    return tensor.bfloat16().double()


@devices
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_rounded_numbers(has_bias: bool, device: str) -> None:
    parts = [drawn(3, 5, 16), drawn(7, 16, seed=2), drawn(7, seed=3) if has_bias else None]
    input, weight, bias = (x if x is None else x.to(device).requires_grad_() for x in parts)
    given = drawn(3, 5, 7, seed=4).to(device)
    output = Linear.apply(input, weight, bias)
    output.backward(given)
    assert output.dtype == torch.float32

    def same(mine: Tensor, exact: Tensor) -> None:
        torch.testing.assert_close(mine.double(), exact.to(device), rtol=2**-8, atol=1e-6)

    x, w, g = (rounded(t) for t in (parts[0], parts[1], given))
    products = x.to(device) @ w.to(device).T
    same(output.detach() - (0 if bias is None else bias.detach()), products)
    same(input.grad, g @ w.to(device))
    same(weight.grad, torch.einsum("abo,abi->oi", g, x.to(device)))
    if bias is not None:
        torch.testing.assert_close(bias.grad, given.sum((0, 1)))


def test_gradients_of_what_is_trained_alone() -> None:
    weight = drawn(7, 16).requires_grad_()
    Linear.apply(drawn(3, 16), weight, None).sum().backward()
    assert weight.grad is not None
    input = drawn(3, 16).requires_grad_()
    Linear.apply(input, weight.detach(), drawn(7)).sum().backward()
    assert input.grad is not None
    with torch.no_grad():
        assert not Linear.apply(input, weight, None).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_vectors_and_autocast_are_left_alone(dtype: torch.dtype) -> None:
    input, weight = drawn(3, 16), drawn(7, 16)
    other, vector = (input.to(dtype), weight.to(dtype)), (input[0], weight)
    plain = [F.linear(*other), F.linear(*vector), input @ input.T]
    single = F.linear(input, weight)
    with torch.autocast("cpu", torch.bfloat16):
        cast = F.linear(input, weight)
    with BFloat16Linear():
        found = [F.linear(*other), F.linear(*vector), input @ input.T]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(F.linear(input, weight), cast)
        assert not torch.equal(F.linear(input, weight), single)
    assert all(map(torch.equal, found, plain))


def make_model(family: str, scheme: str, *flags: str) -> Any:
    from fairseq.models import ARCH_MODEL_REGISTRY

    torch.manual_seed(7)
    dictionary = blank_dictionary(24)
    sizes = {"layers": 1, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 4}
    tiny = [f"--{side}-{name}={size}" for side in SIDES[family] for name, size in sizes.items()]
    args = parse_architecture(f"{scheme}_{family}", [*tiny, *STILL, *flags])
    args.tokens_per_sample = 16
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def outcome(model: Any, family: str) -> list[Tensor]:
    """Logits and gradients, of every weight that is asked for one."""
    model.zero_grad()
    tokens = torch.arange(4, 16).view(2, 6)
    source = {"src_lengths": torch.tensor([6, 6])}
    if family == "transformer":
        source["prev_output_tokens"] = tokens.flip(1)
    logits: Tensor = model(tokens, **source)[0]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *(gradient.clone() for gradient in gradients)]


@pytest.mark.parametrize("family", SIDES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_heed_the_flag_in_training_alone(scheme: str, family: str) -> None:
    plain, flagged = make_model(family, scheme), make_model(family, scheme, "--bfloat16-linear")
    exact = outcome(plain.eval(), family)
    assert all(map(torch.equal, outcome(flagged.eval(), family), exact))
    single, rounded = outcome(plain.train(), family), outcome(flagged.train(), family)
    assert not torch.equal(rounded[0], single[0])
    for mine, other in zip(rounded, single, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < RELATIVE * max(float(other.norm()), 1.0)
