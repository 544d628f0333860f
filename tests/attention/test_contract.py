"""What every scheme of the registry must do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_attn.attention import SCHEMES, Attention, build_attention
from nas_attn.attention.folded import fold
from tests.helpers.attention import (
    CASES,
    EMBED_DIM,
    NUM_HEADS,
    SPECIAL_CASES,
    Choose,
    every_case,
    inputs,
    make,
    set_thresholds,
)
from tests.helpers.devices import needs_cuda
from tests.helpers.naive_attention import NAIVE, naive_attention


def test_tables_cover_the_registry() -> None:
    assert {scheme for scheme, _, _ in CASES} == set(SCHEMES) == set(NAIVE)
    assert set(SCHEMES) == set(SPECIAL_CASES)


@every_case
@settings(max_examples=16, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 5),
    extra=st.integers(0, 3),
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    kdim=st.none() | st.integers(2, 9),
    bias=st.booleans(),
    kind=st.sampled_from(
        ["none", "padding", "mask", "causal", "causal and padding", "float", "incremental"]
    ),
)
def test_equals_the_naive_reference(
    scheme: str,
    choose: Choose,
    batch: int,
    time: int,
    extra: int,
    num_heads: int,
    head_dim: int,
    kdim: int | None,
    bias: bool,
    kind: str,
) -> None:
    """Outputs and gradients of inputs and parameters, float64, to 1e-10."""
    width = num_heads * head_dim
    one_by_one = kind == "incremental"
    source = time if "causal" in kind or one_by_one else time + extra
    options = choose(width, num_heads)
    module = make(scheme, options, width, num_heads, kdim=kdim, vdim=kdim, bias=bias)
    query, key = inputs(batch, time, source, width, kdim)
    allowed = torch.ones(batch, time, source, dtype=torch.bool)
    arguments: dict[str, object] = {}
    if "padding" in kind:
        padding = torch.zeros(batch, source, dtype=torch.bool)
        padding[0, source - 1] = True
        allowed &= ~padding[:, None]
        arguments["key_padding_mask"] = padding
    if kind in ("mask", "float"):
        mask = torch.rand(time, source, generator=torch.Generator().manual_seed(time)) < 0.4
        allowed &= ~mask
        as_float = torch.zeros(time, source, dtype=torch.double).masked_fill(mask, float("-inf"))
        arguments["attn_mask"] = as_float if kind == "float" else mask
    if "causal" in kind or one_by_one:
        allowed &= torch.ones(time, source, dtype=torch.bool).tril()
        arguments["is_causal"] = True
    outcomes = []
    for naive in (True, False):
        x, y = query.clone().requires_grad_(), key.clone().requires_grad_()
        module.zero_grad()
        if naive:
            output = naive_attention(scheme, module, x, y, y, allowed)
        elif one_by_one:
            output = attend_step_by_step(module, x, y)
        else:
            output, _ = module(x, y, y, need_weights=False, **arguments)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output)
        (output * weights).sum().backward()
        gradients = [t.grad for t in (x, y, *module.parameters())]
        zeros = [torch.zeros_like(t) for t in (x, y, *module.parameters())]
        whole = [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
        outcomes.append([output.detach(), *whole])
    for expected, found in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def attend_step_by_step(module: Attention, query: Tensor, key: Tensor) -> Tensor:
    """Incremental decoding: each step adds its token to the cached keys and values."""
    keys, values = module.keys(key[:, :0]), module.values(key[:, :0])
    outputs = []
    for step in range(query.size(1)):
        token = key[:, step : step + 1]
        keys = torch.cat([keys, module.keys(token)], dim=2)
        values = torch.cat([values, module.values(token)], dim=2)
        output, _ = module.attend(query[:, step : step + 1], keys, values)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


@every_case
def test_weights_are_returned_when_asked(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, key = inputs(2, 4, 6)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    plain, none = module(query, key, key, key_padding_mask=padding, need_weights=False)
    output, weights = module(query, key, key, padding, average_attn_weights=False)
    _, mean = module(query, key, key, padding)
    assert none is None
    assert weights.shape == (2, NUM_HEADS, 4, 6)
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, NUM_HEADS, 4, dtype=torch.double))
    torch.testing.assert_close(mean, weights.mean(dim=1), rtol=0, atol=0)
    assert not weights[1, :, :, 4:].any()


@every_case
@pytest.mark.parametrize(("kdim", "bias"), [(None, True), (5, False), (40, True)])
def test_attention_to_a_source_itself_is_the_same(
    scheme: str, choose: Choose, kdim: int | None, bias: bool
) -> None:
    """Queries and outputs take the maps of keys and values over."""
    options = choose(EMBED_DIM, NUM_HEADS)
    module = make(scheme, options, kdim=kdim, vdim=kdim, bias=bias)
    query, source = inputs(3, 4, 6, EMBED_DIM, kdim)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    how: dict[str, Any] = {"key_padding_mask": padding, "need_weights": True}
    with torch.no_grad():
        expected = module.attend(query, *module.project(source, source), **how)
        found = fold(module).attend(query, source, **how)
        plain, _ = fold(module).attend(query, source, key_padding_mask=padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(plain, expected[0], rtol=0, atol=1e-10)


@every_case
def test_long_sequences_take_another_path_to_the_same_result(
    scheme: str, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, _ = inputs(2, 9, 9)
    short, _ = module(query, query, query, is_causal=True, need_weights=False)
    set_thresholds(monkeypatch, explicit_max_scores=4)
    long, _ = module(query, query, query, is_causal=True, need_weights=False)
    torch.testing.assert_close(long, short, rtol=0, atol=1e-12)


@every_case
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_query_that_may_attend_nowhere_gets_a_constant(
    scheme: str, choose: Choose, need_weights: bool
) -> None:
    """The output bias, and what the scheme adds to heads; never NaN, in no gradient."""
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, key = inputs(2, 3, 4)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1] = True
    query.requires_grad_()
    output, _ = module(query, key, key, padding, need_weights)
    output.sum().backward()
    heads = 1 if scheme == "single_head" else NUM_HEADS
    width = 0 if scheme == "none" else EMBED_DIM // NUM_HEADS
    nothing = torch.zeros(1, heads, 1, width).double()
    nothing = nothing if scheme == "latent" else module.mix_values(nothing)
    expected = module.out_proj(nothing.transpose(1, 2).flatten(2))[0]
    torch.testing.assert_close(output[1], expected.expand(3, -1))
    for tensor in (query, *module.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@every_case
def test_cache_size_is_what_keys_and_values_return(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    _, key = inputs(1, 1, 1)
    assert module.cache_size() == module.keys(key).numel() + module.values(key).numel()


@every_case
def test_attention_dropout_acts_in_training_only(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS), dropout=0.5)
    query, _ = inputs(2, 6, 6)
    first, _ = module(query, query, query)
    second, _ = module(query, query, query)
    assert torch.equal(first, second)
    module.train()
    torch.manual_seed(0)
    dropped, _ = module(query, query, query)
    assert (scheme == "none") == torch.allclose(dropped, first)
    # Unbiased: the mean over many draws is the output without dropout.
    many = query[:1].expand(4000, -1, -1)
    mean = module(many, many, many)[0].mean(dim=0)
    torch.testing.assert_close(mean, first[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_special_case_equals_torch_multi_head_attention(scheme: str) -> None:
    num_heads, options = SPECIAL_CASES[scheme]
    reference = nn.MultiheadAttention(EMBED_DIM, num_heads, batch_first=True).double()
    nn.init.normal_(reference.in_proj_bias)
    nn.init.normal_(reference.out_proj.bias)
    module = build_attention(scheme, EMBED_DIM, num_heads, **options).double()
    query_rows, key_rows, value_rows = (
        slice(EMBED_DIM * part, EMBED_DIM * (part + 1)) for part in range(3)
    )
    rows = {"q_proj": query_rows, "k_proj": key_rows, "v_proj": value_rows}
    with torch.no_grad():
        if scheme == "shared_key_value":
            reference.in_proj_weight[value_rows] = reference.in_proj_weight[key_rows]
            reference.in_proj_bias[value_rows] = reference.in_proj_bias[key_rows]
            rows = {"q_proj": query_rows, "kv_proj": key_rows}
        if scheme == "none":
            reference.in_proj_weight[query_rows] = reference.in_proj_bias[query_rows] = 0.0
            reference.out_proj.weight.zero_()
            rows = {}
        for name, part in rows.items():
            getattr(module, name).weight.copy_(reference.in_proj_weight[part])
            getattr(module, name).bias.copy_(reference.in_proj_bias[part])
        if scheme != "none":
            module.out_proj.weight.copy_(reference.out_proj.weight)
        module.out_proj.bias.copy_(reference.out_proj.bias)
        for name, parameter in module.named_parameters():
            if "embedding" in name:
                parameter.zero_()
            elif name == "c_proj.weight":
                parameter.copy_(torch.eye(EMBED_DIM))
    query, key = inputs(3, 4, 5)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[2, 3:] = True
    for arguments in (
        {"key_padding_mask": padding},
        {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(1)},
        {"average_attn_weights": False},
    ):
        results = []
        for attention in (reference, module):
            x = query.clone().requires_grad_()
            output, weights = attention(x, key, key, **arguments)
            (output.square().sum() + 0.0 * x.sum()).backward()
            results.append((output.detach(), weights.detach(), x.grad))
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@every_case
def test_state_dict_round_trip_and_gradients(scheme: str, choose: Choose) -> None:
    """Every parameter that may be trained is reached; one that is dead may not be."""
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    copied = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    nn.init.normal_(copied.out_proj.weight)
    copied.load_state_dict(module.state_dict())
    query, key = inputs(2, 4, 6)
    output, _ = module(query, key, key)
    assert torch.equal(output, copied(query, key, key)[0])
    output.sum().backward()
    untrained = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert untrained == ({"key_embedding"} if scheme == "head_embedding_add" else set())
    assert {name for name, p in module.named_parameters() if p.grad is None} == untrained


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(scheme: str, choose: Choose, dtype: torch.dtype) -> None:
    """Weights in 16 bit, and autocast over float32 weights, near the float64 result."""
    exact = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, key = inputs(2, 5, 7)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    expected = exact(query, key, key, key_padding_mask=padding)[0].detach()
    tolerance = (0.04 if dtype == torch.bfloat16 else 0.01) * float(expected.abs().max())
    half = make(scheme, choose(EMBED_DIM, NUM_HEADS)).to(dtype)
    single = make(scheme, choose(EMBED_DIM, NUM_HEADS)).float()
    low_key = key.to(dtype)
    for need_weights in (False, True):
        found, _ = half(query.to(dtype), low_key, low_key, padding, need_weights)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
        with torch.autocast("cpu", dtype):
            single_key = key.float()
            found, _ = single(query.float(), single_key, single_key, padding, need_weights)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
        found.sum().backward()
        grads = [p.grad for p in single.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() for g in grads)


@needs_cuda
@every_case
def test_cuda_agrees_with_cpu(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, key = inputs(2, 5, 7)
    expected, _ = module(query, key, key, need_weights=False)
    module.cuda()
    there = key.cuda()
    found, _ = module(query.cuda(), there, there, need_weights=False)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_case
def test_tracing_works_and_scripting_is_refused(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, _ = inputs(2, 5, 5)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module

        def forward(self, x: Tensor) -> Any:
            return self.attention(x, x, x, need_weights=False)[0]

    traced = torch.jit.trace(Self(), query)
    torch.testing.assert_close(traced(query + 1), Self()(query + 1), rtol=0, atol=1e-12)
    with pytest.raises(NotImplementedError, match="does not support TorchScript"):
        torch.jit.script(Self())


@every_case
def test_compiling_and_exporting_work(scheme: str, choose: Choose) -> None:
    """In one graph each, without a fall back to Python."""
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, _ = inputs(2, 5, 5)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    arguments = {"key_padding_mask": padding, "need_weights": False, "is_causal": True}
    expected, _ = module(query, query, query, **arguments)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, query, query, **arguments)[0], expected)
    exported = torch.export.export(module, (query, query, query), arguments).module()
    torch.testing.assert_close(exported(query, query, query, **arguments)[0], expected)


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_stands_in_torch_transformer_layers(scheme: str, choose: Choose, training: bool) -> None:
    """In torch's own layers, masks and all, as `torch.nn.MultiheadAttention` does."""
    query, key = inputs(2, 5, 6)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    encoder = nn.TransformerEncoderLayer(EMBED_DIM, NUM_HEADS, 8, 0.0, batch_first=True).double()
    decoder = nn.TransformerDecoderLayer(EMBED_DIM, NUM_HEADS, 8, 0.0, batch_first=True).double()
    for layer in (encoder, decoder):
        layer.self_attn = make(scheme, choose(EMBED_DIM, NUM_HEADS))
        layer.train(training)
    decoder.multihead_attn = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    attended, _ = encoder.self_attn(query, query, query, padding, False, is_causal=True)
    hidden = encoder.norm1(query + attended)
    expected = encoder.norm2(hidden + encoder.linear2(encoder.linear1(hidden).relu()))
    found = encoder(query, src_mask=causal, src_key_padding_mask=padding, is_causal=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    decoder(query, key, tgt_mask=causal, tgt_key_padding_mask=padding, tgt_is_causal=True)
    stack = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False).train(training)
    found = stack(query, mask=causal, src_key_padding_mask=padding)
    torch.testing.assert_close(found, encoder(encoder(query, causal, padding), causal, padding))


@every_case
def test_masks_of_single_heads(scheme: str, choose: Choose) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    query, _ = inputs(2, 5, 5)
    mask = torch.rand(2 * NUM_HEADS, 5, 5) < 0.3
    if scheme == "single_head":
        with pytest.raises(ValueError, match=re.escape("attn_mask as (time, source)")):
            module(query, query, query, attn_mask=mask)
        return
    _, weights = module(query, query, query, attn_mask=mask, average_attn_weights=False)
    assert not weights[mask.view_as(weights)].any()
