"""The cache of incremental decoding against joining and indexing afresh."""

from __future__ import annotations

import pytest
import torch

from nas_attn.attention.cache import Cache
from tests.helpers.devices import devices, needs_cuda


@devices
@pytest.mark.parametrize("in_place", [None, True, False])
@pytest.mark.parametrize("seed", range(8))
def test_any_course_of_decoding(seed: int, in_place: bool | None, device: str) -> None:
    """Steps, beams that move a little or much, and sentences that end, in any order."""
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(6, 2, 3, 4, generator=generator).to(device)
    cache = Cache(expected.clone(), in_place=in_place)
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
        order = order.to(device)
        cache.reorder(order)
        expected = expected[order]
        steps = 1 + int(torch.randint(3, (), generator=generator))
        tokens = torch.randn(expected.size(0), 2, steps, 4, generator=generator).to(device)
        cache.append(tokens)
        expected = torch.cat([expected, tokens], dim=2)
        assert torch.equal(cache.tokens, expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_batch_may_grow(in_place: bool) -> None:
    tokens = torch.randn(2, 1, 3, 4)
    cache = Cache(tokens.clone(), in_place=in_place)
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


def test_a_copy_has_as_much_room_and_is_one_operation() -> None:
    """Else a step after an order would make room anew; and on GPUs operations are what costs."""
    cache = Cache(torch.randn(4, 2, 40, 8), in_place=False)
    cache.append(torch.randn(4, 2, 1, 8))
    expected = cache.tokens.clone()
    order = torch.tensor([2, 2, 0])
    with torch.profiler.profile() as profile:
        cache.reorder(order)
    called = [event.key for event in profile.key_averages() if event.key.startswith("aten::")]
    views = {"aten::slice", "aten::as_strided", "aten::empty", "aten::resize_", "aten::select"}
    assert set(called) - views == {"aten::index_select"}
    place = cache.tokens.data_ptr()
    cache.append(torch.zeros(3, 2, 1, 8))
    assert cache.tokens.data_ptr() == place
    assert torch.equal(cache.tokens[:, :, :41], expected[order])


@pytest.mark.parametrize(
    ("in_place", "first", "expected"),
    [
        (True, 1, 32),
        (True, 40, 82),
        (False, 1, 34),
        (False, 799, 900),
    ],
)
def test_room_is_made_by_the_cost_of_copying_it(in_place: bool, first: int, expected: int) -> None:
    """An order copies the room too, unless rows are moved where they are."""
    cache = Cache(torch.zeros(1, 1, first, 1), in_place=in_place)
    cache.append(torch.zeros(1, 1, 1, 1))
    assert cache.tokens.untyped_storage().nbytes() == expected * 4


@needs_cuda
def test_orders_do_not_wait_for_the_gpu() -> None:
    cache = Cache(torch.randn(4, 2, 1, 8, device="cuda"))
    order = torch.tensor([1, 0, 3, 3], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            cache.reorder(order)
            cache.append(torch.ones(4, 2, 1, 8, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
