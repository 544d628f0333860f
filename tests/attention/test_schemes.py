"""What only one scheme promises."""

import math

import pytest
import torch

from nas_attn.attention import CollaborativeAttention, MultiHeadAttention, build_attention
from nas_attn.attention.functional import merge_masks
from nas_attn.errors import PlanError
from tests.attention.test_contract import inputs, make


def copy_from_multi_head(module: CollaborativeAttention, source: MultiHeadAttention) -> None:
    state = {**module.state_dict(), **source.state_dict()}
    module.load_state_dict(state)


def test_block_of_ones_equals_multi_head_in_outputs_and_gradients() -> None:
    torch.manual_seed(1)
    plain = MultiHeadAttention(512, 8).double()
    shared = CollaborativeAttention(512, 8, shared_dim=512, mixing_init="heads").double()
    copy_from_multi_head(shared, plain)
    query = torch.randn(2, 7, 512, dtype=torch.double)
    results = []
    for module in (plain, shared):
        x = query.clone().requires_grad_()
        output, _ = module(x, x, x, is_causal=True)
        output.square().sum().backward()
        weights = [getattr(module, name).weight.grad for name in ("q_proj", "k_proj", "v_proj")]
        results.append([output.detach(), x.grad, *weights, module.q_proj.bias.grad])
    for expected, found in zip(*results, strict=True):
        scale = expected.abs().max()
        assert (found - expected).abs().max() <= 1e-12 * max(1.0, scale)


@pytest.mark.parametrize("shared_dim", [4, 6, 12])
def test_shared_columns_may_be_permuted_and_rescaled(shared_dim: int) -> None:
    module = make("collaborative", {"shared_dim": shared_dim})
    query, key = inputs(2, 4, 6)
    before, _ = module(query, key, key)
    order = torch.randperm(shared_dim)
    left, right = (torch.rand(shared_dim, dtype=torch.double) + 0.5 for _ in range(2))
    with torch.no_grad():
        for projection, factor in ((module.q_proj, left), (module.k_proj, right)):
            projection.weight.copy_((projection.weight * factor[:, None])[order])
            projection.bias.copy_((projection.bias * factor)[order])
        module.mixing.copy_((module.mixing / (left * right))[:, order])
    torch.testing.assert_close(module(query, key, key)[0], before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", ["multi_head", "collaborative"])
def test_the_key_bias_changes_nothing(scheme: str) -> None:
    module = make(scheme, {})
    query, key = inputs(2, 4, 6)
    before, _ = module(query, key, key)
    torch.nn.init.zeros_(module.k_proj.bias)
    torch.testing.assert_close(module(query, key, key)[0], before, rtol=0, atol=1e-12)


def test_content_bias_replaces_the_query_bias() -> None:
    """v_i = W_K^i b_Q^i and no biases give multi-head attention's weights (paper 1)."""
    plain = make("multi_head", {})
    shared = make("collaborative", {"shared_dim": 12, "mixing_init": "heads", "content_bias": True})
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(shared, name).weight.copy_(getattr(plain, name).weight)
        for head in range(3):
            rows = slice(4 * head, 4 * head + 4)
            bias = plain.q_proj.bias[rows] @ plain.k_proj.weight[rows]
            shared.content_bias.weight[head].copy_(bias)
    query, key = inputs(2, 4, 6)
    _, expected = plain(query, key, key, need_weights=True)
    _, found = shared(query, key, key, need_weights=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_scale_does_not_depend_on_the_shared_dimension() -> None:
    for shared_dim in (16, 64, 512):
        module = CollaborativeAttention(512, 8, shared_dim=shared_dim)
        assert module.scale == 1 / math.sqrt(64)


def test_default_shared_dimension_is_a_quarter() -> None:
    assert CollaborativeAttention(512, 8).shared_dim == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_dim": 0}, "shared_dim must be at least 1, but is 0"),
        ({"shared_dim": "64"}, "shared_dim must be a whole number, but is '64'"),
        ({"shared_dim": True}, "shared_dim must be a whole number, but is True"),
        ({"mixing_init": "ones"}, "mixing_init must be xavier or heads, but is 'ones'"),
        ({"mixing_init": "heads", "shared_dim": 10}, "8 heads divide"),
        ({"shared": 3}, "unknown option 'shared'; it has shared_dim, content_bias, mixing_init"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=f"^collaborative: .*{message}"):
        build_attention("collaborative", 512, 8, **options)


def test_bad_sizes_and_names_are_refused() -> None:
    with pytest.raises(PlanError, match="64 heads do not divide a width of 100"):
        build_attention("multi_head", 100, 64)
    with pytest.raises(PlanError, match="unknown scheme 'multihead'; schemes are multi_head"):
        build_attention("multihead", 512, 8)


def test_masks_join() -> None:
    padding = torch.tensor([[False, True]])
    mask = torch.tensor([[True, False], [False, False]])
    joined = merge_masks(padding, mask)
    assert joined is not None
    assert joined.tolist() == [[[[False, False], [True, False]]]]
    added = merge_masks(padding, torch.zeros(2, 2))
    assert added is not None
    assert added[0, 0].tolist() == [[0.0, float("-inf")], [0.0, float("-inf")]]
    assert merge_masks(None, None) is None
