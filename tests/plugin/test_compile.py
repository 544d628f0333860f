"""torch.compile of attention as fairseq's layers call it: caches grow, and graphs are few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from fairseq_plugin.adapter import FairseqAttention
from tests.helpers.attention import inputs, make, schemes_but_long
from tests.helpers.devices import devices

STEPS = 60


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@devices
@pytest.mark.parametrize(
    "scheme", schemes_but_long("collaborative", "head_embedding_add", "shared_key_value", "latent")
)
def test_few_compilations_in_incremental_decoding(scheme: str, device: str) -> None:
    """fairseq's state is Python's, so a step is more than one graph; but no step needs new ones."""
    attention = FairseqAttention(make(scheme), decoder_self_attention=True).to(device)
    tokens = inputs(3, STEPS, STEPS)[0].transpose(0, 1).to(device).split(1)
    order = torch.tensor([2, 0, 0], device=device)
    counter = CompileCounter()
    torch.compiler.reset()

    def decode(call: Any) -> Tensor:
        state: dict[str, Any] = {}
        outputs = []
        for number, token in enumerate(tokens):
            output, _ = call(token, token, token, incremental_state=state, need_weights=False)
            outputs.append(output)
            if number % 20 == 19:
                attention.reorder_incremental_state(state, order)
        return torch.cat(outputs)

    with torch.no_grad():
        expected, found = decode(attention), decode(torch.compile(attention, backend=counter))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert 1 <= counter.frame_count <= 8
