"""What every scheme of the registry must do. A new scheme adds its cases to the tables below."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_attn.attention import SCHEMES, Attention, build_attention
from tests.attention.naive import SCORES, naive_attention

CASES: list[tuple[str, dict[str, object]]] = [
    ("multi_head", {}),
    ("collaborative", {"shared_dim": 5}),
    ("collaborative", {"shared_dim": 3}),
    ("collaborative", {"shared_dim": 1}),
    ("collaborative", {"shared_dim": 4, "content_bias": True}),
    ("collaborative", {"shared_dim": 12, "mixing_init": "heads"}),
]
"""(scheme, options) at embed_dim 12 and 3 heads."""

EQUALS_MULTI_HEAD: dict[str, dict[str, object]] = {
    "multi_head": {},
    "collaborative": {"shared_dim": 12, "mixing_init": "heads"},
}
"""Options that make a scheme compute multi-head attention from multi-head weights."""

EMBED_DIM, NUM_HEADS = 12, 3
ids = [f"{scheme}-{'-'.join(map(str, options.values()))}" for scheme, options in CASES]
every_case = pytest.mark.parametrize(("scheme", "options"), CASES, ids=ids)


def make(scheme: str, options: dict[str, object], **sizes: object) -> Attention:
    torch.manual_seed(5)
    module = build_attention(scheme, EMBED_DIM, NUM_HEADS, **sizes, **options).double().eval()
    for parameter in module.parameters():  # no parameter may be zero, or its term goes untested
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return module


def inputs(batch: int, time: int, source: int, kdim: int = EMBED_DIM) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * time + 100 * source)
    query = torch.randn(batch, time, EMBED_DIM, dtype=torch.double, generator=generator)
    return query, torch.randn(batch, source, kdim, dtype=torch.double, generator=generator)


def test_tables_cover_the_registry() -> None:
    assert {scheme for scheme, _ in CASES} == set(SCHEMES) == set(EQUALS_MULTI_HEAD) == set(SCORES)


@every_case
@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 5),
    extra=st.integers(0, 3),
    kind=st.sampled_from(["none", "padding", "mask", "causal", "causal and padding", "float"]),
)
def test_equals_the_naive_reference(
    scheme: str, options: dict[str, object], batch: int, time: int, extra: int, kind: str
) -> None:
    source = time if "causal" in kind else time + extra
    module = make(scheme, options)
    query, key = inputs(batch, time, source)
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
    if "causal" in kind:
        allowed &= torch.ones(time, source, dtype=torch.bool).tril()
        arguments["is_causal"] = True
    outcomes = []
    for naive in (True, False):
        x, y = query.clone().requires_grad_(), key.clone().requires_grad_()
        module.zero_grad()
        if naive:
            output = naive_attention(scheme, module, x, y, y, allowed)
        else:
            output, _ = module(x, y, y, **arguments)
        (
            output * torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output)
        ).sum().backward()
        gradients = [x.grad, y.grad, *(p.grad for p in module.parameters())]
        zeros = [torch.zeros_like(t) for t in (x, y, *module.parameters())]
        outcomes.append(
            [
                output.detach(),
                *(z if g is None else g for g, z in zip(gradients, zeros, strict=True)),
            ]
        )
    for expected, found in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@every_case
def test_weights_are_returned_when_asked(scheme: str, options: dict[str, object]) -> None:
    module = make(scheme, options)
    query, key = inputs(2, 4, 6)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    plain, none = module(query, key, key, key_padding_mask=padding)
    output, weights = module(query, key, key, key_padding_mask=padding, need_weights=True)
    assert none is None
    assert weights.shape == (2, NUM_HEADS, 4, 6)
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, NUM_HEADS, 4, dtype=torch.double))
    assert not weights[1, :, :, 4:].any()


@every_case
def test_long_sequences_take_another_path_to_the_same_result(
    scheme: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(scheme, options)
    query, _ = inputs(2, 9, 9)
    short, _ = module(query, query, query, is_causal=True)
    monkeypatch.setattr("nas_attn.attention.functional.FOLD_MAX_LENGTH", 4)
    long, _ = module(query, query, query, is_causal=True)
    torch.testing.assert_close(long, short, rtol=0, atol=1e-12)


@every_case
def test_a_query_that_may_attend_nowhere_gets_the_output_bias(
    scheme: str, options: dict[str, object]
) -> None:
    module = make(scheme, options)
    query, key = inputs(2, 3, 4)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1] = True
    query.requires_grad_()
    output, _ = module(query, key, key, key_padding_mask=padding)
    output.sum().backward()
    torch.testing.assert_close(output[1], module.out_proj.bias.expand(3, -1))
    assert query.grad is not None
    assert query.grad.isfinite().all()


@every_case
def test_keys_and_values_of_another_width(scheme: str, options: dict[str, object]) -> None:
    if options.get("mixing_init") == "heads":
        options = {**options, "mixing_init": "xavier"}
    module = make(scheme, options, kdim=7, vdim=7)
    query, key = inputs(2, 3, 5, kdim=7)
    output, _ = module(query, key, key)
    expected = naive_attention(
        scheme, module, query, key, key, torch.ones(2, 3, 5, dtype=torch.bool)
    )
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


@every_case
def test_cache_size_is_what_keys_and_values_return(scheme: str, options: dict[str, object]) -> None:
    module = make(scheme, options)
    _, key = inputs(1, 1, 1)
    assert module.cache_size() == module.keys(key).numel() + module.values(key).numel()


@every_case
def test_step_by_step_equals_all_at_once(scheme: str, options: dict[str, object]) -> None:
    module = make(scheme, options)
    query, _ = inputs(2, 6, 6)
    whole, _ = module(query, query, query, is_causal=True)
    keys, values = module.keys(query[:, :0]), module.values(query[:, :0])
    for step in range(6):
        token = query[:, step : step + 1]
        keys = torch.cat([keys, module.keys(token)], dim=2)
        values = torch.cat([values, module.values(token)], dim=2)
        output, _ = module.attend(module.queries(token), keys, values)
        torch.testing.assert_close(output, whole[:, step : step + 1], rtol=0, atol=1e-12)


@every_case
def test_attention_dropout_acts_in_training_only(scheme: str, options: dict[str, object]) -> None:
    module = make(scheme, options, dropout=0.5)
    query, _ = inputs(2, 6, 6)
    first, _ = module(query, query, query)
    second, _ = module(query, query, query)
    assert torch.equal(first, second)
    module.train()
    torch.manual_seed(0)
    dropped, _ = module(query, query, query)
    assert not torch.allclose(dropped, first)
    # Unbiased: the mean over many draws is the output without dropout.
    many = query[:1].expand(4000, -1, -1)
    mean = module(many, many, many)[0].mean(dim=0)
    torch.testing.assert_close(mean, first[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_special_case_equals_torch_multi_head_attention(scheme: str) -> None:
    reference = nn.MultiheadAttention(EMBED_DIM, NUM_HEADS, batch_first=True).double()
    nn.init.normal_(reference.in_proj_bias)
    nn.init.normal_(reference.out_proj.bias)
    module = make(scheme, EQUALS_MULTI_HEAD[scheme])
    with torch.no_grad():
        names = ("q_proj", "k_proj", "v_proj")
        for index, name in enumerate(names):
            rows = slice(index * EMBED_DIM, (index + 1) * EMBED_DIM)
            getattr(module, name).weight.copy_(reference.in_proj_weight[rows])
            getattr(module, name).bias.copy_(reference.in_proj_bias[rows])
        module.out_proj.load_state_dict(reference.out_proj.state_dict())
    query, key = inputs(3, 4, 5)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[2, 3:] = True
    gradients = []
    for attention in (reference, module):
        x = query.clone().requires_grad_()
        output, _ = attention(x, key, key, key_padding_mask=padding, need_weights=False)
        output.square().sum().backward()
        gradients.append((output.detach(), x.grad))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@every_case
def test_state_dict_round_trip_and_no_dead_gradients(
    scheme: str, options: dict[str, object]
) -> None:
    module = make(scheme, options)
    twin = make(scheme, options)
    nn.init.normal_(twin.out_proj.weight)
    twin.load_state_dict(module.state_dict())
    query, key = inputs(2, 4, 6)
    output, _ = module(query, key, key)
    assert torch.equal(output, twin(query, key, key)[0])
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
