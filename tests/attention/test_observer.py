"""Observers see what attention is called with, and change nothing of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nas_attn.attention import build_attention
from nas_attn.attention.observer import ObservedQuery, observed
from tests.helpers.attention import Choose, every_case


class Notes:
    def __init__(self) -> None:
        self.inputs: list[tuple[Tensor, Tensor]] = []
        self.calls: list[ObservedQuery] = []

    def on_inputs(self, key: Tensor, value: Tensor) -> None:
        self.inputs.append((key, value))

    def on_attend(self, call: ObservedQuery) -> None:
        self.calls.append(call)


@every_case
def test_an_observer_is_told_inputs_and_masks(scheme: str, choose: Choose) -> None:
    module = build_attention(scheme, 16, 4, **choose(16, 4)).eval()
    query, key = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    plain, _ = module(query, key, key, key_padding_mask=padding, need_weights=False)
    assert not module.wants_query_padding
    with observed(module, Notes()) as notes:
        assert module.wants_query_padding
        module.query_padding_mask = padding[:, :3]
        seen, _ = module(query, key, key, key_padding_mask=padding, need_weights=False)
    assert torch.equal(seen, plain)
    ((observed_key, observed_value),), (call,) = notes.inputs, notes.calls
    assert observed_key is observed_value is key
    assert call.query is query
    assert call.key_padding_mask is padding
    assert call.attn_mask is None
    assert not call.is_causal
    assert call.query_padding_mask is not None
    assert module.observer is module.query_padding_mask is None
    module(query, key, key)
    assert len(notes.calls) == 1, "it is gone"


def test_an_observer_goes_also_when_something_fails() -> None:
    module = build_attention("multi_head", 16, 4)
    with pytest.raises(ZeroDivisionError), observed(module, Notes()):
        _ = 1 / 0
    assert module.observer is None
