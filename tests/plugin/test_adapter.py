"""The adapter against fairseq's own MultiheadAttention, and every scheme through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor

from fairseq_plugin.adapter import FairseqAttention
from nas_attn.attention import SCHEMES, build_attention

WIDTH, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _softmax_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq takes the softmax in float32 whatever the inputs are; here both sides stay exact."""
    softmax = "fairseq.modules.multihead_attention.utils.softmax"
    monkeypatch.setattr(softmax, lambda x, dim, onnx_trace=False: torch.softmax(x, dim))


def pair(cross: bool = False) -> tuple[MultiheadAttention, FairseqAttention]:
    torch.manual_seed(2)
    stock = MultiheadAttention(
        WIDTH, HEADS, self_attention=not cross, encoder_decoder_attention=cross
    ).double()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    core = build_attention("multi_head", WIDTH, HEADS).double()
    core.load_state_dict(stock.state_dict())
    return stock.eval(), FairseqAttention(core, encoder_decoder_attention=cross).eval()


def tokens(length: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(length, batch, WIDTH, dtype=torch.double, generator=generator)


def same(left: Tensor | None, right: Tensor | None) -> None:
    assert left is not None
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def causal(length: int) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=torch.double).triu(1)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_self_attention_with_masks() -> None:
    stock, ours = pair()
    x = tokens(5)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    for arguments in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal(5)},
        {"attn_mask": causal(5), "key_padding_mask": padding},
    ):
        expected, weights = stock(x, x, x, need_weights=True, **arguments)
        output, found = ours(x, x, x, need_weights=True, **arguments)
        same(output, expected)
        same(found, weights)
        same(ours(x, x, x, need_weights=False, **arguments)[0], expected)


def test_head_weights() -> None:
    stock, ours = pair(cross=True)
    x, y = tokens(4), tokens(6)
    _, expected = stock(x, y, y, need_head_weights=True, static_kv=True)
    _, found = ours(x, y, y, need_head_weights=True, static_kv=True)
    assert expected.shape == (HEADS, 3, 4, 6)
    same(found, expected)


def decode(attention: Any, x: Tensor, y: Tensor | None, orders: list[Tensor]) -> Tensor:
    """Decode token by token, re-ordering the cache before each step."""
    state: dict[str, Any] = {}
    outputs = []
    for step, order in enumerate(orders):
        if step:
            attention.reorder_incremental_state(state, order)
        token = x[step : step + 1, : order.numel()]
        source = token if y is None else y[:, : order.numel()]
        output, _ = attention(
            token,
            source,
            source,
            incremental_state=state,
            static_kv=y is not None,
            need_weights=False,
        )
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)


def test_incremental_decoding_with_beam_reordering() -> None:
    orders = [torch.tensor(o) for o in ([0, 1, 2], [2, 2, 0], [1, 0, 0], [0, 1, 2])]
    stock, ours = pair()
    same(decode(ours, tokens(4), None, orders), decode(stock, tokens(4), None, orders))

    # Beams of a sentence share its encoder output, so only leaving sentences change its cache.
    orders = [torch.tensor(o) for o in ([0, 1, 2], [0, 1, 2], [0, 2], [1])]
    stock, ours = pair(cross=True)
    x, y = tokens(4), tokens(6)
    expected, found = (decode(attention, x, y, orders) for attention in (stock, ours))
    same(found, expected)


def test_incremental_decoding_of_padded_prefixes() -> None:
    stock, ours = pair()
    x = tokens(3, batch=2)
    padding = [torch.tensor([[True], [False]]), None, None]
    results = []
    for attention in (stock, ours):
        state: dict[str, Any] = {}
        steps = [
            attention(
                x[t : t + 1],
                x[t : t + 1],
                x[t : t + 1],
                key_padding_mask=padding[t],
                incremental_state=state,
                need_weights=False,
            )[0]
            for t in range(3)
        ]
        results.append(torch.cat(steps)[1:])  # the first step of row 0 may attend nowhere
    same(results[1], results[0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_decodes_as_it_trains(scheme: str) -> None:
    torch.manual_seed(3)
    ours = FairseqAttention(build_attention(scheme, WIDTH, HEADS).double()).eval()
    x = tokens(6)
    whole, _ = ours(x, x, x, attn_mask=causal(6), need_weights=False)
    stay = [torch.arange(3)] * 6
    same(decode(ours, x, None, stay), whole.flatten(0, 1))


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_follows_beam_search(scheme: str, cross: bool) -> None:
    """Each step's output is that of the whole history of its hypothesis, computed afresh."""
    torch.manual_seed(3)
    attention = build_attention(scheme, WIDTH, HEADS).double()
    ours = FairseqAttention(attention, encoder_decoder_attention=cross).eval()
    x, y = tokens(5), tokens(4)
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[1, 2:] = True
    orders = [torch.tensor(o) for o in ([0, 1, 2], [2, 2, 0], [1, 0, 0], [0, 2], [1, 0])]
    state: dict[str, Any] = {}
    rows = torch.arange(3)
    history = x[:0]
    for step, order in enumerate(orders):
        if step:
            ours.reorder_incremental_state(state, order)
        rows, history = rows[order], history[:, order]
        token = x[step : step + 1, : order.numel()]
        history = torch.cat([history, token])
        source = y[:, rows] if cross else history
        mask = padding[rows] if cross else None
        given = source if cross else token
        output, _ = ours(
            token,
            given,
            given,
            key_padding_mask=mask,
            incremental_state=state,
            static_kv=cross,
            need_weights=False,
        )
        expected, _ = ours(token, source, source, key_padding_mask=mask, need_weights=False)
        same(output, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hypotheses_may_share_rows_of_the_encoder(scheme: str) -> None:
    """Three sentences for six hypotheses: as with rows repeated, weights too; kept once."""
    torch.manual_seed(3)
    attention = build_attention(scheme, WIDTH, HEADS).double()
    ours = FairseqAttention(attention, encoder_decoder_attention=True).eval()
    x, y = tokens(1, batch=6), tokens(4)
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[1, 2:] = True
    every = torch.tensor([0, 0, 1, 1, 2, 2])
    state: dict[str, Any] = {}
    results = [
        ours(x, rows, rows, mask, state, static_kv=True, need_head_weights=True)
        for rows, mask, state in ((y, padding, state), (y[:, every], padding[every], {}))
    ]
    same(results[0][0], results[1][0])
    same(results[0][1], results[1][1])
    kept = ours._get_input_buffer(state)
    assert kept["prev_key"].numel() + kept["prev_value"].numel() == 3 * 4 * attention.cache_size()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_future_mask_is_a_flag_of_decoders(scheme: str) -> None:
    torch.manual_seed(3)
    attention = build_attention(scheme, WIDTH, HEADS).double()
    plain = FairseqAttention(attention).eval()
    flagged = FairseqAttention(attention, decoder_self_attention=True).eval()
    x = tokens(5)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    for mask in (None, padding):
        arguments = {"attn_mask": causal(5), "key_padding_mask": mask, "need_weights": False}
        same(flagged(x, x, x, **arguments)[0], plain(x, x, x, **arguments)[0])
    longer = torch.cat([torch.zeros(5, 2).double(), causal(5)], dim=1)
    y = torch.cat([tokens(2), x])
    expected = plain(x, y, y, attn_mask=longer, need_weights=False)[0]
    same(flagged(x, y, y, attn_mask=longer, need_weights=False)[0], expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cache_holds_shared_heads_once(scheme: str) -> None:
    attention = build_attention(scheme, WIDTH, HEADS).double()
    ours = FairseqAttention(attention).eval()
    x = tokens(5)
    state: dict[str, Any] = {}
    ours(x, x, x, incremental_state=state, need_weights=False)
    buffer = ours._get_input_buffer(state)
    cached = sum(t.numel() for t in (buffer["prev_key"], buffer["prev_value"]))
    assert cached == 3 * 5 * attention.cache_size()


def test_what_is_not_supported_is_said() -> None:
    _, ours = pair()
    x = tokens(2)
    with pytest.raises(NotImplementedError, match="scores before softmax"):
        ours(x, x, x, before_softmax=True)
