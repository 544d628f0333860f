"""The cache of incremental decoding against joining and indexing afresh."""

from __future__ import annotations

import pytest
import torch

from nas_attn.attention.cache import Cache


@pytest.mark.parametrize("seed", range(8))
def test_any_course_of_decoding(seed: int) -> None:
    """Steps, beams that move a little or much, and sentences that end, in any order."""
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(6, 2, 3, 4, generator=generator)
    cache = Cache(expected.clone())
    for _ in range(60):
        rows = expected.size(0)
        kind = int(torch.randint(4, (), generator=generator))
        if kind == 0:
            order = torch.randint(rows, (rows,), generator=generator)
        elif kind == 1:
            order = torch.arange(rows)
            order[0] = rows - 1
        elif kind == 2 and rows > 2:
            order = torch.randint(rows, (rows - 1,), generator=generator)
        else:
            order = torch.arange(rows)
        cache.reorder(order)
        expected = expected[order]
        steps = 1 + int(torch.randint(3, (), generator=generator))
        tokens = torch.randn(expected.size(0), 2, steps, 4, generator=generator)
        cache.append(tokens)
        expected = torch.cat([expected, tokens], dim=2)
        assert torch.equal(cache.tokens, expected)


def test_a_batch_may_grow() -> None:
    tokens = torch.randn(2, 1, 3, 4)
    cache = Cache(tokens.clone())
    order = torch.tensor([0, 0, 1, 1, 1])
    cache.reorder(order)
    assert torch.equal(cache.tokens, tokens[order])


def test_steps_and_orders_take_no_new_memory_while_there_is_room() -> None:
    cache = Cache(torch.randn(4, 2, 1, 8))
    cache.append(torch.randn(4, 2, 1, 8))
    place = cache.tokens.data_ptr()
    for _ in range(20):
        cache.reorder(torch.tensor([1, 0, 3, 3]))
        cache.append(torch.randn(4, 2, 1, 8))
    assert cache.tokens.data_ptr() == place
    assert cache.tokens.shape == (4, 2, 22, 8)


def test_gradients_flow_through() -> None:
    first = torch.randn(2, 1, 2, 3, requires_grad=True)
    step = torch.randn(2, 1, 1, 3, requires_grad=True)
    cache = Cache(first)
    cache.append(step)
    cache.reorder(torch.tensor([1, 1]))
    cache.tokens.sum().backward()
    assert first.grad is not None
    assert first.grad[:, 0, 0, 0].tolist() == [0.0, 2.0]


def test_heads_without_width_are_kept() -> None:
    """Values of `shared_key_value` have no numbers of their own."""
    cache = Cache(torch.empty(3, 4, 1, 0))
    cache.append(torch.empty(3, 4, 2, 0))
    cache.reorder(torch.tensor([2, 0]))
    assert cache.tokens.shape == (2, 4, 3, 0)
