"""What only one scheme promises."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_attn.attention import (
    SCHEMES,
    Attention,
    CollaborativeAttention,
    MultiHeadAttention,
    build_attention,
)
from nas_attn.attention.masks import merge_masks
from nas_attn.errors import PlanError
from tests.helpers.attention import inputs, make


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
        output, _ = module(x, x, x, is_causal=True, need_weights=False)
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


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"shared_key_value", "none"}))
def test_the_key_bias_changes_nothing(scheme: str) -> None:
    module = make(scheme)
    query, key = inputs(2, 4, 6)
    before, _ = module(query, key, key)
    assert module.k_proj.bias.any()
    torch.nn.init.zeros_(module.k_proj.bias)
    torch.testing.assert_close(module(query, key, key)[0], before, rtol=0, atol=1e-12)


def test_content_bias_replaces_the_query_bias() -> None:
    """v_i = W_K^i b_Q^i and no biases give multi-head attention's weights (paper 1)."""
    plain = make("multi_head")
    shared = make("collaborative", {"shared_dim": 16, "mixing_init": "heads", "content_bias": True})
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(shared, name).weight.copy_(getattr(plain, name).weight)
        for head in range(4):
            rows = slice(4 * head, 4 * head + 4)
            bias = plain.q_proj.bias[rows] @ plain.k_proj.weight[rows]
            shared.content_bias.weight[head].copy_(bias)
    query, key = inputs(2, 4, 6)
    _, expected = plain(query, key, key, average_attn_weights=False)
    _, found = shared(query, key, key, average_attn_weights=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_heads_that_share_columns_are_represented_exactly() -> None:
    """Heads that each pick 8 of 16 shared columns, at the scale of multi-head attention.

    The scale sqrt(shared_dim / num_heads) of another implementation would be off by sqrt(2).
    """
    left, right = (torch.randn(32, 16, dtype=torch.double) for _ in range(2))
    plain = build_attention("multi_head", 32, 4, bias=False).double()
    shared = build_attention("collaborative", 32, 4, shared_dim=16, bias=False).double()
    with torch.no_grad():
        shared.q_proj.weight.copy_(left.T)
        shared.k_proj.weight.copy_(right.T)
        shared.mixing.zero_()
        for head in range(4):
            columns, weights = torch.randperm(16)[:8], torch.randn(8, dtype=torch.double)
            shared.mixing[head, columns] = weights
            rows = slice(8 * head, 8 * head + 8)
            plain.q_proj.weight[rows] = (left[:, columns] * weights).T
            plain.k_proj.weight[rows] = right[:, columns].T
    query = torch.randn(2, 5, 32, dtype=torch.double)
    _, expected = plain(query, query, query, average_attn_weights=False)
    _, found = shared(query, query, query, average_attn_weights=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    shared.scale = (shared.shared_dim / shared.num_heads) ** -0.5
    _, other = shared(query, query, query, average_attn_weights=False)
    centred = [w.log() - w.log().mean(-1, keepdim=True) for w in (other.detach(), found.detach())]
    ratio = (centred[0] / centred[1])[0, 0, 0, 0]
    assert float(ratio) == pytest.approx(1.41421, abs=1e-5)


def score_multiply_adds(module: Attention, length: int) -> int:
    """Multiply-adds of all batched products (scores and values; projections are other calls)."""
    query = torch.randn(1, length, module.embed_dim)
    with FlopCounterMode(display=False) as counter:
        module(query, query, query)
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.bmm]) // 2


def test_score_multiply_adds_of_the_base_model() -> None:
    """18 layers at length 30: H times dearer at full width, equal at a head's width."""
    plain = 18 * score_multiply_adds(MultiHeadAttention(512, 8), 30)
    for shared_dim, extra in ((512, 58_060_800), (64, 0)):
        shared = CollaborativeAttention(512, 8, shared_dim=shared_dim)
        assert 18 * score_multiply_adds(shared, 30) - plain == extra


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
        ({"num_value_heads": 3}, "num_value_heads must divide 8 heads, but is 3"),
        (
            {"shared": 3},
            "unknown option 'shared'; it has shared_dim, content_bias, mixing_init, num",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=f"^collaborative: .*{message}"):
        build_attention("collaborative", 512, 8, **options)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("grouped_query", {"num_groups": 3}, "num_groups must divide 8 heads, but is 3"),
        ("grouped_query", {"num_groups": 0}, "num_groups must divide 8 heads, but is 0"),
        ("grouped_query", {"num_value_groups": 3}, "num_value_groups must divide 8 heads"),
        ("grouped_query", {"tied": True, "num_value_groups": 2}, "leave num_value_groups out"),
        ("grouped_query", {"tied": True, "vdim": 256}, "keys and values are one"),
        ("reduced_key", {"key_dim": 12}, "8 heads do not divide a key_dim of 12"),
        ("reduced_key", {"key_dim": 0}, "8 heads do not divide a key_dim of 0"),
        ("shared_key_value", {"vdim": 256}, "keys and values are one"),
        ("latent", {"vdim": 256}, "keys and values are made of one latent"),
        ("latent", {"latent_dim": 0}, "latent_dim must be at least 1, but is 0"),
        ("multi_query", {"num_groups": 1}, "unknown option 'num_groups'; it has no options"),
        ("head_embedding_mul", {"plain_embedding": 1}, "plain_embedding must be true or false"),
        ("head_embedding_add", {"embedding_std": -1}, "embedding_std must not be negative"),
    ],
)
def test_bad_options_of_other_schemes(
    scheme: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PlanError, match=f"^{scheme}: .*{message}"):
        build_attention(scheme, 512, 8, **options)


def same_outputs(left: Attention, right: Attention) -> None:
    """Over self and cross attention, with every kind of mask; input gradients too."""
    query, key = inputs(2, 5, 5)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for arguments in (
        {},
        {"key_padding_mask": padding},
        {"is_causal": True},
        {"is_causal": True, "key_padding_mask": padding},
    ):
        for source in (query, key):
            results = []
            for module in (left, right):
                x, y = query.clone().requires_grad_(), source.clone().requires_grad_()
                output, weights = module(x, y, y, average_attn_weights=False, **arguments)
                output.square().sum().backward()
                results.append([output.detach(), weights.detach(), x.grad, y.grad])
            for expected, found in zip(*results, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_multiplied_embeddings_are_collaborative_attention_of_head_width() -> None:
    """m_i = (1 + e_i^Q)(1 + e_i^K); the value factor goes into the output projection."""
    embedded = make("head_embedding_mul")
    shared = make("collaborative", {"shared_dim": 4, "num_value_heads": 1})
    state = {name: p for name, p in embedded.state_dict().items() if "embedding" not in name}
    with torch.no_grad():
        mixing = (1 + embedded.query_embedding) * (1 + embedded.key_embedding)
        scaled = embedded.out_proj.weight * (1 + embedded.value_embedding).flatten()
        shared.load_state_dict({**state, "mixing": mixing, "out_proj.weight": scaled})
    same_outputs(embedded, shared)


def test_plain_embeddings_are_a_shift_of_the_others() -> None:
    plain, shifted = (
        make("head_embedding_mul", {"plain_embedding": True}),
        make("head_embedding_mul"),
    )
    state = shifted.state_dict()
    plain.load_state_dict({k: v + 1 if "embedding" in k else v for k, v in state.items()})
    same_outputs(plain, shifted)


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_query_attention_is_multi_head_attention_of_repeated_heads(groups: int) -> None:
    grouped, plain = make("grouped_query", {"num_groups": groups}), make("multi_head")
    state = grouped.state_dict()
    for name in ("k_proj", "v_proj"):
        for part in (f"{name}.weight", f"{name}.bias"):
            heads = state[part].unflatten(0, (groups, 4))
            state[part] = heads.repeat_interleave(4 // groups, dim=0).flatten(0, 1)
    plain.load_state_dict(state)
    same_outputs(grouped, plain)


@pytest.mark.parametrize(
    ("scheme", "options", "other", "other_options"),
    [
        ("multi_query", {}, "grouped_query", {"num_groups": 1}),
        ("grouped_query", {"num_groups": 4}, "multi_head", {}),
        ("grouped_query", {"num_groups": 2, "num_value_groups": 2}, "grouped_query", {}),
        ("grouped_query", {"num_groups": 4, "tied": True}, "shared_key_value", {}),
        ("reduced_key", {"key_dim": 16}, "multi_head", {}),
        ("collaborative", {"num_value_heads": 4}, "collaborative", {}),
    ],
)
def test_one_function_under_two_names(
    scheme: str, options: dict[str, object], other: str, other_options: dict[str, object]
) -> None:
    """The same parameters under the same names, and the same outputs."""
    left, right = make(scheme, options), make(other, other_options)
    right.load_state_dict(left.state_dict())
    same_outputs(left, right)
    torch.manual_seed(4)
    first = build_attention(scheme, 16, 4, **options)
    torch.manual_seed(4)
    second = build_attention(other, 16, 4, **other_options)
    same = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)  # drawn alike, too


@pytest.mark.parametrize("scheme", ["head_embedding_add", "head_embedding_mul"])
def test_embeddings_of_zero_are_a_single_head(scheme: str) -> None:
    embedded, single = make(scheme), make("single_head")
    single.load_state_dict(
        {name: p for name, p in embedded.state_dict().items() if "embedding" not in name}
    )
    for name in ("query", "key", "value"):
        nn.init.zeros_(getattr(embedded, f"{name}_embedding"))
    same_outputs(embedded, single)


@pytest.mark.parametrize(
    ("scheme", "options", "mean"),
    [
        ("head_embedding_add", {}, 0),
        ("head_embedding_mul", {}, 0),
        ("head_embedding_mul", {"plain_embedding": True}, 1),
    ],
)
def test_embeddings_start_with_the_deviation_asked(
    scheme: str, options: dict[str, object], mean: float
) -> None:
    module = build_attention(scheme, 512, 8, embedding_std=0.1, **options)
    for name in ("query", "key", "value"):
        embedding = getattr(module, f"{name}_embedding").detach()
        assert float(embedding.mean()) == pytest.approx(mean, abs=0.02)
        assert float(embedding.std()) == pytest.approx(0.1, rel=0.2)


def test_a_narrow_output_is_the_sum_of_the_blocks() -> None:
    wide, narrow = make("single_head"), make("single_head", {"narrow_output": True})
    state = wide.state_dict()
    state["out_proj.weight"] = state["out_proj.weight"].unflatten(1, (4, 4)).sum(dim=1)
    narrow.load_state_dict(state)
    same_outputs(wide, narrow)


def test_one_head_has_its_embeddings_on_top() -> None:
    sizes = {
        scheme: sum(p.numel() for p in build_attention(scheme, 16, 1).parameters())
        for scheme in ("single_head", "head_embedding_add", "head_embedding_mul", "multi_head")
    }
    assert sizes["single_head"] == sizes["multi_head"]
    assert sizes["head_embedding_add"] == sizes["head_embedding_mul"]
    assert sizes["head_embedding_add"] == sizes["single_head"] + 3 * 16


def test_added_key_embeddings_are_dead_and_value_embeddings_a_shift() -> None:
    module = make("head_embedding_add")
    query, key = inputs(2, 4, 6)
    before, _ = module(query, key, key)
    assert not module.key_embedding.requires_grad
    nn.init.normal_(module.key_embedding)
    assert torch.equal(module(query, key, key)[0], before)
    shift = module.out_proj.weight @ module.value_embedding.flatten()
    with torch.no_grad():
        module.out_proj.bias += shift
        module.value_embedding.zero_()
    torch.testing.assert_close(module(query, key, key)[0], before, rtol=0, atol=1e-12)


def test_an_optimiser_leaves_the_dead_embedding_alone() -> None:
    module = make("head_embedding_add").float().train()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    query = torch.randn(2, 5, 16)
    for _ in range(3):
        optimizer.zero_grad()
        module(query, query, query)[0].square().sum().backward()
        optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before) - {"key_embedding"}


@pytest.mark.parametrize("scheme", ["shared_key_value", "latent"])
def test_keys_and_values_that_are_one_are_given_once(scheme: str) -> None:
    module = make(scheme)
    query, key = inputs(2, 4, 6)
    with pytest.raises(ValueError, match="pass the same tensor as key and value"):
        module(query, key, key.clone())


def test_no_attention_is_a_constant_with_uniform_weights() -> None:
    module, empty = make("none", {"output_bias": True}, bias=False), make("none")
    query, key = inputs(2, 4, 6)
    query.requires_grad_()
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 2:] = True
    for scheme, constant in ((module, module.out_proj.bias), (empty, torch.zeros(16))):
        output, weights = scheme(query, key, key, padding)
        assert torch.equal(output, constant.double().expand(2, 4, 16))
        assert torch.autograd.grad(output.sum(), query, allow_unused=True) == (None,)
        assert weights[0].eq(1 / 6).all()
        assert weights[1, :, :2].eq(1 / 2).all()
    assert sum(p.numel() for p in empty.parameters()) == 0
    copied = make("none")
    copied.load_state_dict(empty.state_dict())


MASKS: dict[str, dict[str, object]] = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False, True, True, True, True]])},
    "causal": {"is_causal": True},
    "blind row": {"attn_mask": torch.eye(5, dtype=torch.bool).roll(2, 0).cumsum(0) > 0},
    "heads": {"attn_mask": (torch.arange(8 * 25) % 3 == 0).view(8, 5, 5)},
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("latent_dim", [3, 20])
def test_queries_and_outputs_take_over_what_makes_keys_and_values(
    kind: str, latent_dim: int
) -> None:
    module = make("latent", {"latent_dim": latent_dim})
    query, _ = inputs(2, 5, 5)
    results = []
    with torch.no_grad():
        for module.implementation in ("explicit", "absorbed"):
            results.append(module(query, query, query, **MASKS[kind]))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_latents_are_attended_to_where_that_is_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """In decoding, not for whole sequences; nor with gradients, which every parameter gets."""
    module = build_attention("latent", 64, 8, latent_dim=32).eval()
    query, latents = torch.randn(1, 64, 64), torch.randn(1, 1, 64, 32)
    calls = []
    mix_values = type(module).mix_values
    monkeypatch.setattr(type(module), "mix_values", lambda *a: calls.append(1) or mix_values(*a))
    for gradients, queries, expected in ((False, 64, 0), (False, 1, 1), (True, 1, 0)):
        calls.clear()
        with torch.set_grad_enabled(gradients):
            module.attend(query[:, :queries], latents, latents[..., :0])
        assert len(calls) == expected
    module.implementation = "absorbed"
    with pytest.raises(ValueError, match="absorbed records no gradients and drops no weights"):
        module(query, query, query)


def test_latents_start_so_that_keys_vary_as_those_of_multi_head() -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 2000, 256)
    with torch.no_grad():
        for kdim in (256, 128):
            sizes = {"kdim": kdim, "vdim": kdim}
            plain = build_attention("multi_head", 256, 4, **sizes).k_proj(x[..., :kdim])
            for latent_dim in (32, 128):
                module = build_attention("latent", 256, 4, latent_dim=latent_dim, **sizes)
                keys = module.k_proj(module.c_proj(x[..., :kdim]))
                assert float(keys.std() / plain.std()) == pytest.approx(1.0, rel=0.1)


def test_shared_projections_start_as_multi_head_ones() -> None:
    """A head starts alike whether it is shared or not: the same bound of the uniform weights."""
    bound = float(build_attention("multi_head", 512, 8).k_proj.weight.detach().abs().max())
    for scheme in ("grouped_query", "multi_query", "single_head", "head_embedding_add"):
        module = build_attention(scheme, 512, 8)
        for name in ("k_proj", "v_proj"):
            found = float(getattr(module, name).weight.detach().abs().max())
            assert found == pytest.approx(bound, rel=1e-3)


def test_bad_sizes_and_names_are_refused() -> None:
    with pytest.raises(PlanError, match="64 heads do not divide a width of 100"):
        build_attention("multi_head", 100, 64)
    with pytest.raises(PlanError, match="unknown scheme 'multihead'; did you mean \"multi_head\""):
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
