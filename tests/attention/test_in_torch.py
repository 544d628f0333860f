"""Attention of every scheme inside torch's own Transformers, and exported for all lengths."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import Attention
from tests.helpers.attention import EMBED_DIM, NUM_HEADS, Choose, every_case, make

WIDTH = EMBED_DIM
nested_tensors = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def encoder(nested: bool = True, batch_first: bool = True) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, NUM_HEADS, dim_feedforward=24, dropout=0.0, batch_first=batch_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested and batch_first)
    return model.double()


def padded(batch: int = 3, time: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    padding = torch.zeros(batch, time, dtype=torch.bool)
    padding[1, time - 2 :] = True
    return torch.randn(batch, time, WIDTH, dtype=torch.float64), padding


def same_weights(mine: Attention, theirs: nn.MultiheadAttention) -> Attention:
    """Multi-head attention with torch's weights."""
    state = {
        f"{name}_proj.{kind}": part
        for kind in ("weight", "bias")
        for name, part in zip(
            "qkv", getattr(theirs, f"in_proj_{kind}").detach().chunk(3), strict=True
        )
    }
    state |= {f"out_proj.{name}": t for name, t in theirs.out_proj.state_dict().items()}
    mine.load_state_dict(state)
    return mine


@nested_tensors
@every_case
@pytest.mark.parametrize("nested", [False, True])
def test_replaced_in_a_built_encoder(scheme: str, choose: Choose, nested: bool) -> None:
    model = encoder(nested)
    for layer in model.layers:
        layer.self_attn = make(scheme, choose(WIDTH, NUM_HEADS))
    states, padding = padded()
    for mask in (None, padding):
        trained = model.train()(states, src_key_padding_mask=mask)
        trained.sum().backward()
        for mode in (torch.enable_grad(), torch.no_grad()):
            with mode:
                found = model.eval()(states, src_key_padding_mask=mask)
            there = torch.ones_like(padding) if mask is None else ~mask
            torch.testing.assert_close(found[there], trained[there])


@nested_tensors
@pytest.mark.parametrize("replaced", [[0], [1], [0, 1]])
@pytest.mark.parametrize("nested", [False, True])
def test_replaced_in_some_layers(replaced: list[int], nested: bool) -> None:
    """torch hands its own layers nested tensors, and those behind them too."""
    model = encoder(nested).eval()
    mine = copy.deepcopy(model)
    for index in replaced:
        mine.layers[index].self_attn = same_weights(
            make("multi_head"), model.layers[index].self_attn
        )
    states, padding = padded()
    with torch.no_grad():
        wanted = model(states, src_key_padding_mask=padding)
        found = mine(states, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], wanted[~padding])
    with torch.no_grad():
        torch.testing.assert_close(mine(states), model(states))


def test_replaced_in_a_decoder_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(
        WIDTH, NUM_HEADS, dim_feedforward=24, dropout=0.0, batch_first=True
    ).double()
    mine = copy.deepcopy(layer)
    mine.self_attn = same_weights(make("multi_head"), layer.self_attn)
    mine.multihead_attn = same_weights(make("multi_head"), layer.multihead_attn)
    states, padding = padded()
    masks = {"tgt_key_padding_mask": padding, "memory_key_padding_mask": padding}
    masks["tgt_mask"] = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for training in (True, False):
        found, wanted = (m.train(training)(states, states, **masks) for m in (mine, layer))
        torch.testing.assert_close(found, wanted)


def test_sequences_without_a_batch() -> None:
    theirs = nn.MultiheadAttention(WIDTH, NUM_HEADS, batch_first=True).double()
    mine = same_weights(make("multi_head"), theirs)
    states, padding = (t[1] for t in padded())
    masks = {"key_padding_mask": padding, "attn_mask": torch.ones(6, 6).triu(1).bool()}
    for found, wanted in zip(
        mine(states, states, states, **masks), theirs(states, states, states, **masks), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_nested_tensors_take_no_masks() -> None:
    states = torch.nested.nested_tensor([torch.zeros(2, WIDTH), torch.zeros(3, WIDTH)])
    with pytest.raises(NotImplementedError, match="without masks"):
        make("multi_head").float()(states, states, states, torch.zeros(2, 3, dtype=torch.bool))


class Calls(nn.Module):
    """Self-attention as an exported graph calls it."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        output, _ = self.attention(states, states, states, padding, need_weights=False)
        return output


@every_case
def test_exported_for_all_lengths(scheme: str, choose: Choose) -> None:
    module = Calls(make(scheme, choose(WIDTH, NUM_HEADS)))
    lengths = {1: torch.export.Dim("length", min=2, max=1024)}
    exported = torch.export.export(module, padded(), dynamic_shapes=(lengths, lengths)).module()
    for time in (2, 40, 200):  # fewer and more than `choose_implementation` computes in one piece
        given = padded(3, time)
        torch.testing.assert_close(exported(*given), module(*given))
