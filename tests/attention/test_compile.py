"""torch.compile: equal outputs and gradients, in one graph, and few compilations in decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from nas_attn.attention import Attention
from tests.helpers.attention import EMBED_DIM, NUM_HEADS, Choose, every_case, inputs, make
from tests.helpers.devices import devices

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler
]
STEPS = 60


def outcome(module: Attention, backend: str | None, query: Tensor, key: Tensor) -> list[Tensor]:
    """Output and gradients, of the inputs and of all parameters."""
    torch.compiler.reset()
    call = module if backend is None else torch.compile(module, backend=backend, fullgraph=True)
    module.zero_grad()
    query, key = (tensor.detach().clone().requires_grad_() for tensor in (query, key))
    padding = torch.zeros(key.shape[:2], dtype=torch.bool, device=key.device)
    padding[1, 5:] = True
    output, _ = call(query, key, key, key_padding_mask=padding, need_weights=False)
    ramp = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype)
    (output * ramp.view_as(output)).sum().backward()
    grads = [query.grad, key.grad, *(p.grad for p in module.parameters() if p.requires_grad)]
    attends = module.cache_size() > 0  # else no output depends on the inputs
    assert all(grad is not None for grad in grads) or not attends
    return [output.detach(), *(grad for grad in grads if grad is not None)]


@every_case
def test_gradients_of_one_graph(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, key = inputs(2, 5, 7)
    expected = outcome(module, None, query, key)
    for mine, other in zip(outcome(module, "aot_eager", query, key), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@devices
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("scheme", "options"),
    [("collaborative", {"shared_dim": 5}), ("head_embedding_add", {}), ("grouped_query", {})],
)
def test_generated_code(scheme: str, options: dict[str, object], device: str) -> None:
    """By torch's own compiler, in float32: it may take sums in another order."""
    module = make(scheme, options).float().to(device)
    query, key = (tensor.float().to(device) for tensor in inputs(2, 5, 7))
    expected = outcome(module, None, query, key)
    for mine, other in zip(outcome(module, "inductor", query, key), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@devices
@every_case
def test_few_compilations_in_decoding(scheme: str, choose: Choose, device: str) -> None:
    """Once for a length, once for all, and once where another implementation is faster."""
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS)).to(device)
    counter = CompileCounter()
    torch.compiler.reset()

    def step(token: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new_keys, new_values = module.project(token, token)
        keys = torch.cat([keys, new_keys], dim=2)
        values = torch.cat([values, new_values], dim=2)
        return module.attend(token, keys, values)[0], keys, values

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    tokens = inputs(3, STEPS, STEPS)[0].to(device).split(1, dim=1)
    with torch.no_grad():
        mine = other = module.project(tokens[0], tokens[0])
        for token in tokens[1:]:
            found, *mine = compiled(token, *mine)
            expected, *other = step(token, *other)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert mine[0].size(2) == STEPS
    assert 1 <= counter.frame_count <= 3
