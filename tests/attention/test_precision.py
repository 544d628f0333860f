"""Every implementation against float64, on every device and in every type, to the type's rounding.

The bound. Scores are rounded, by some share of their size, and what is off by d changes a weight by
a factor of e^d: weights are off by a few roundings times one and the largest score. Weights,
outputs and their gradients are rounded again, and a sum of n terms in float32 gathers an error of
about the root of n roundings (Higham and Mary 2019, doi 10.1137/18M1226312). Errors of outputs and
gradients are then at most that many roundings of the same sums over absolute values, which float64
has.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nas_attn.attention.functional import IMPLEMENTATIONS, Implementation, attend
from tests.helpers.devices import devices

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROUNDINGS = 2
"""Of the type, in the root of the sum of their squares, between scores and a gradient."""

# Heads, those of keys and of values, queries, keys, width of keys and of values, shifted or not.
SHAPES = {
    "multi_head": (4, 4, 4, 70, 70, 32, 32, False),
    "one key head": (4, 1, 1, 70, 70, 32, 32, False),
    "groups": (4, 2, 2, 70, 70, 32, 32, False),
    "wide keys": (4, 1, 4, 70, 70, 64, 32, False),
    "narrow keys": (4, 4, 4, 70, 70, 16, 32, False),
    "shifts": (4, 1, 1, 70, 70, 32, 32, True),
    "cross": (4, 4, 4, 33, 96, 32, 32, False),
    "a step": (4, 4, 4, 1, 96, 32, 32, False),
    "a step, one key head": (4, 1, 1, 1, 96, 32, 32, False),
    "a step, groups": (4, 2, 2, 1, 96, 32, 32, False),
    "a step, wide keys": (4, 1, 4, 1, 96, 64, 32, False),
    "a step, shifts": (4, 1, 1, 1, 96, 32, 32, True),
    "length that cuDNN fails at": (4, 2, 2, 64, 192, 32, 32, False),
}
MASKS = ("none", "causal", "padding", "blind rows", "float")
BATCH, SCALE = 3, 0.25


def tensors(name: str, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    heads, key_heads, value_heads, queries, keys, key_width, value_width, shifted = SHAPES[name]
    generator = torch.Generator().manual_seed(len(name))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    found = {
        "queries": draw(BATCH, 1 if shifted else heads, queries, key_width),
        "keys": draw(BATCH, key_heads, keys, key_width),
        "values": draw(BATCH, value_heads, keys, value_width),
        "gradient": draw(BATCH, heads, queries, value_width),
    }
    return found | ({"shifts": draw(heads, key_width)} if shifted else {})


def masked(kind: str, given: dict[str, Tensor]) -> dict[str, object]:
    """A sentence without any key, as filled up batches have them; and rows without one."""
    queries, keys, device = given["queries"].size(2), given["keys"].size(2), given["keys"].device
    if kind == "causal":
        return {"is_causal": True}
    generator = torch.Generator().manual_seed(1)
    allowed = torch.ones(BATCH, 1, 1, keys, dtype=torch.bool)
    allowed[0, ..., keys - 9 :] = False
    allowed[1] = False
    if kind == "padding":
        return {"mask": allowed.to(device)}
    rows = torch.rand(1, 1, queries, keys, generator=generator) < 0.7
    rows[..., queries // 2, :] = False
    if kind == "blind rows":
        return {"mask": rows.to(device)}
    if kind == "float":
        bias = torch.randn(1, 1, queries, keys, generator=generator).masked_fill(~rows, -torch.inf)
        return {"mask": bias.to(device, given["keys"].dtype)}
    return {}


def spared(implementation: Implementation, name: str, kind: str, dtype: torch.dtype) -> bool:
    """Whether a case is left out: FlexAttention compiles each for ten seconds on a GPU."""
    tried = name == "wide keys" and (dtype == torch.bfloat16 or kind == "none")
    return implementation == "flex" and not tried


def run(
    given: dict[str, Tensor], how: dict[str, object], implementation: Implementation
) -> dict[str, Tensor]:
    """Output, and gradients by the names of what they are of."""
    names = [name for name in ("queries", "keys", "values", "shifts") if name in given]
    inputs = {name: given[name].clone().requires_grad_() for name in names}
    output, _ = attend(**inputs, **how, scale=SCALE, implementation=implementation)
    gradients = torch.autograd.grad(output, list(inputs.values()), given["gradient"])
    return {"output": output.detach(), **dict(zip(names, gradients, strict=True))}


def bounds(given: dict[str, Tensor], how: dict[str, object]) -> dict[str, Tensor]:
    """The sums over absolute values, times one and the largest score (see above)."""
    queries, keys, values = given["queries"], given["keys"], given["values"]
    shifts = given.get("shifts")
    heads = given["gradient"].size(1)
    whole = queries if shifts is None else queries + shifts[:, None]
    key_of, value_of = (t.repeat_interleave(heads // t.size(1), dim=1) for t in (keys, values))
    _, weights = attend(
        whole, key_of, value_of, **how, scale=SCALE, need_weights=True, implementation="explicit"
    )
    assert weights is not None
    largest = (whole @ key_of.transpose(-1, -2) * SCALE).abs().max()
    whole, key_of, value_of = whole.abs(), key_of.abs(), value_of.abs()
    gradient = given["gradient"].abs()
    to_weights = gradient @ value_of.transpose(-1, -2)
    to_scores = weights * (to_weights + (weights * to_weights).sum(-1, keepdim=True)) * SCALE
    to_queries = to_scores @ key_of

    def shared(per_head: Tensor, like: Tensor) -> Tensor:
        split = per_head.unflatten(1, (like.size(1), heads // like.size(1)))
        return split.sum(dim=2)

    found = {
        "output": weights @ value_of,
        "queries": shared(to_queries, queries),
        "keys": shared(to_scores.transpose(-1, -2) @ whole, keys),
        "values": shared(weights.transpose(-1, -2) @ gradient, values),
        "shifts": to_queries.sum(dim=(0, 2)),
    }
    return {name: bound * (1 + largest) for name, bound in found.items()}


@pytest.fixture(autouse=True)
def _kernels_are_compiled_anew() -> Iterator[None]:
    """Else torch comes to its limit of kinds of a function, and compiles no more."""
    yield
    if torch.cuda.is_available():
        torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by torch's compiler
@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_and_gradients_are_exact_to_rounding(
    name: str, kind: str, dtype: torch.dtype, device: str
) -> None:
    given = tensors(name, device, dtype)
    if kind == "causal" and given["queries"].size(2) != given["keys"].size(2):
        pytest.skip("there are not as many queries as keys")
    how = masked(kind, given)
    exact_given = {key: tensor.double() for key, tensor in given.items()}
    mask = how.get("mask")
    exact_how = dict(how)
    if isinstance(mask, Tensor) and mask.is_floating_point():
        exact_how["mask"] = mask.double()
    exact, allowed = run(exact_given, exact_how, "explicit"), bounds(exact_given, exact_how)
    terms = sum(given["keys"].shape[-2:]) + given["queries"].size(2)
    share = ROUNDINGS * torch.finfo(dtype).eps + terms**0.5 * torch.finfo(torch.float32).eps
    tried = []
    for implementation in IMPLEMENTATIONS:
        if spared(implementation, name, kind, dtype):
            continue
        try:
            found = run(given, how, implementation)
        except ValueError as refusal:
            assert f"the attention implementation {implementation} " in str(refusal)
            continue
        tried.append(implementation)
        for part, tensor in found.items():
            error = (tensor.double() - exact[part]).abs()
            assert not error.isnan().any(), (implementation, part)
            worst = (error / (share * allowed[part] + torch.finfo(dtype).tiny)).max()
            assert worst <= 1, (implementation, part, float(worst))
        if mask is not None:
            blind = exact["output"] == 0.0
            assert not found["output"][blind].any()
    assert {"fused", "explicit"} <= set(tried)
    assert "shared_scores" not in tried or dtype != torch.float16
