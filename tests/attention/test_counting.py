"""Parameters to the unit against closed formulas; effective ones against the Jacobian's rank."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, jacrev

from nas_attn.attention import SCHEMES, build_attention
from nas_attn.attention.counting import (
    build_on_meta,
    count_cache,
    count_choice,
    count_plan,
)
from nas_attn.measures import ModelSize
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

D, N, H = 512, 8, 64
BASE = SiteShape(num_layers=6, embed_dim=D, num_heads=N)


def count(scheme: str, **options: int | bool | str) -> int:
    return count_choice(AttentionChoice.of(scheme, **options), BASE).parameters


def effective(scheme: str, **options: int | bool | str) -> int:
    return count_choice(AttentionChoice.of(scheme, **options), BASE).effective


def test_multi_head_layer() -> None:
    assert count("multi_head") == 4 * D**2 + 4 * D == 1_050_624


@pytest.mark.parametrize(
    ("shared_dim", "expected"), [(512, 1_054_720), (256, 790_016), (128, 657_664), (64, 591_488)]
)
def test_collaborative_layer(shared_dim: int, expected: int) -> None:
    formula = 2 * (D * shared_dim + shared_dim) + N * shared_dim + 2 * (D**2 + D)
    assert count("collaborative", shared_dim=shared_dim) == formula == expected


def test_collaborative_layer_with_content_bias() -> None:
    formula = 2 * D * 256 + N * 256 + N * D + 2 * (D**2 + D)
    assert count("collaborative", shared_dim=256, content_bias=True) == formula == 793_600


@pytest.mark.parametrize("value_heads", [1, 2, 4, 8])
def test_collaborative_layer_with_shared_values(value_heads: int) -> None:
    formula = 2 * (D * 64 + 64) + N * 64 + value_heads * H * (D + 1) + D**2 + D
    assert count("collaborative", shared_dim=64, num_value_heads=value_heads) == formula
    cached = build_attention("collaborative", D, N, shared_dim=64, num_value_heads=value_heads)
    assert cached.cache_size() == 64 + value_heads * H


@pytest.mark.parametrize(("key_dim", "expected"), [(256, 787_968), (128, 656_640), (64, 590_976)])
def test_reduced_key_layer(key_dim: int, expected: int) -> None:
    formula = 2 * (D * key_dim + key_dim) + 2 * (D**2 + D)
    assert count("reduced_key", key_dim=key_dim) == formula == expected


@pytest.mark.parametrize("scheme", ["head_embedding_add", "head_embedding_mul"])
def test_head_embedding_layer(scheme: str) -> None:
    assert count(scheme) == 3 * D * H + 3 * N * H + 3 * H + D**2 + D == 362_688
    wide_heads = SiteShape(num_layers=6, embed_dim=512, num_heads=4)
    assert count_choice(AttentionChoice(scheme), wide_heads).parameters == 461_184


@pytest.mark.parametrize(
    ("heads", "over_single", "under_multi"),
    [(8, 1536, 686_592), (12, 2304, 1_619_712), (16, 3072, 2_946_048)],
)
@pytest.mark.parametrize("scheme", ["head_embedding_add", "head_embedding_mul"])
def test_the_papers_differences(
    scheme: str, heads: int, over_single: int, under_multi: int
) -> None:
    """3nd more than a single head, (3n^2 - 3n)d^2 - 3nd less than multi-head, d a head's width."""
    sizes = {
        name: sum(
            p.numel() for p in build_attention(name, 64 * heads, heads, bias=False).parameters()
        )
        for name in (scheme, "single_head", "multi_head")
    }
    n, d = heads, 64
    assert sizes[scheme] - sizes["single_head"] == 3 * n * d == over_single
    assert sizes["multi_head"] - sizes[scheme] == under_multi
    assert under_multi == (3 * n**2 - 3 * n) * d**2 - 3 * n * d
    with_biases = [
        count_choice(AttentionChoice(s), BASE).parameters for s in (scheme, "single_head")
    ]
    assert with_biases[0] - with_biases[1] == 1536


def test_other_layers() -> None:
    assert count("multi_query") == 2 * D**2 + 2 * D * H + 2 * H + 2 * D == 590_976
    for groups in (1, 2, 4, 8):
        formula = 2 * (D**2 + D) + 2 * groups * H * (D + 1)
        assert count("grouped_query", num_groups=groups) == formula
        one = groups * H * (D + 1)
        assert count("grouped_query", num_groups=groups, tied=True) == formula - one
        for values in (1, 8):
            apart = formula - one + values * H * (D + 1)
            assert count("grouped_query", num_groups=groups, num_value_groups=values) == apart
    assert count("single_head") == 3 * (D * H + H) + D**2 + D
    assert count("single_head", narrow_output=True) == 3 * (D * H + H) + H * D + D
    assert count("shared_key_value") == 3 * (D**2 + D)
    assert count("none") == effective("none") == 0
    assert count("none", output_bias=True) == effective("none", output_bias=True) == D
    for latent in (64, 128, 256):
        assert count("latent", latent_dim=latent) == 2 * D**2 + 3 * D * latent + 4 * D


@pytest.mark.parametrize(
    ("scheme", "options", "raw", "acting"),
    [
        ("multi_head", {}, 1_050_624, 984_064),
        ("multi_query", {}, 590_976, 582_656),
        ("head_embedding_add", {}, 362_688, 353_280),
        ("head_embedding_mul", {}, 362_688, 357_312),
        ("collaborative", {"shared_dim": 256, "content_bias": True}, 793_600, 759_808),
    ],
)
def test_effective_parameters_of_base_layers(
    scheme: str, options: dict[str, int | bool], raw: int, acting: int
) -> None:
    assert (count(scheme, **options), effective(scheme, **options)) == (raw, acting)


RANK_CASES: list[tuple[str, dict[str, object]]] = [
    ("multi_head", {}),
    ("collaborative", {"shared_dim": 5}),
    ("collaborative", {"shared_dim": 1}),
    ("collaborative", {"shared_dim": 9, "num_value_heads": 1}),
    ("collaborative", {"shared_dim": 4, "content_bias": True}),
    ("head_embedding_add", {}),
    ("head_embedding_mul", {}),
    ("head_embedding_mul", {"plain_embedding": True}),
    ("grouped_head", {"kept_heads": 1}),
    ("grouped_query", {"num_groups": 3}),
    ("grouped_query", {"num_groups": 1}),
    ("grouped_query", {"num_groups": 3, "num_value_groups": 1}),
    ("grouped_query", {"num_groups": 1, "num_value_groups": 3}),
    ("grouped_query", {"num_groups": 1, "tied": True}),
    ("grouped_query", {"num_groups": 3, "tied": True}),
    ("multi_query", {}),
    ("single_head", {}),
    ("single_head", {"narrow_output": True}),
    ("reduced_key", {"key_dim": 3}),
    ("reduced_key", {"key_dim": 12}),
    ("shared_key_value", {}),
    ("none", {"output_bias": True}),
    ("latent", {"latent_dim": 2}),
    ("latent", {"latent_dim": 7}),
    ("latent", {"latent_dim": 12}),
]


def jacobian_rank(scheme: str, num_heads: int, sizes: dict[str, object]) -> int:
    """Rank of the outputs' Jacobian by the parameters, over random weights and inputs."""
    torch.manual_seed(3)
    module = build_attention(scheme, 9, num_heads, **sizes).double()
    parameters = {
        name: torch.randn_like(parameter) * 0.6 for name, parameter in module.named_parameters()
    }
    total = sum(p.numel() for p in parameters.values())
    batch = total // (6 * 9) + 6
    query = torch.randn(batch, 6, 9, dtype=torch.double)
    key = torch.randn(batch, 7, module.kdim, dtype=torch.double)

    def outputs(values: dict[str, torch.Tensor]) -> torch.Tensor:
        # The explicit path (asked for by weights), which has derivatives in batches.
        return functional_call(module, values, (query, key, key))[0].flatten()

    columns = [jacobian.flatten(1) for jacobian in jacrev(outputs)(parameters).values()]
    values = torch.linalg.svdvals(torch.cat(columns, dim=1))
    rank = int((values > 1e-9 * values[0]).sum())
    # Only a gap shows the rank.
    assert rank == len(values) or values[rank] < 1e-5 * values[rank - 1], values[rank - 1 :]
    return rank


@pytest.mark.parametrize("num_heads", [3, 1])
@pytest.mark.parametrize(
    "sizes", [{}, {"kdim": 5, "vdim": 5}, {"bias": False}], ids=["self", "cross", "no-bias"]
)
@pytest.mark.parametrize(
    ("scheme", "options"), RANK_CASES, ids=[f"{s}-{list(o.values())}" for s, o in RANK_CASES]
)
def test_effective_parameters_are_the_rank_of_the_jacobian(
    scheme: str, options: dict[str, object], sizes: dict[str, object], num_heads: int
) -> None:
    if num_heads == 1 and "num_groups" in options:
        options = {name: 1 if "groups" in name else given for name, given in options.items()}
    module = build_attention(scheme, 9, num_heads, **options, **sizes)
    assert module.effective_parameters() == jacobian_rank(scheme, num_heads, {**options, **sizes})


def test_every_scheme_stands_in_the_rank_test() -> None:
    assert {scheme for scheme, _ in RANK_CASES} == set(SCHEMES)


def test_dead_and_redundant_parameters_are_taken_off_any_count() -> None:
    size = ModelSize(attention=50, non_embedding=80, total=200, effective=190)
    found = [size.acting(name) for name in size._fields]
    assert found == [40, 70, 190, 190]


def test_counts_need_no_storage() -> None:
    module = build_on_meta(
        AttentionChoice("multi_head"), SiteShape(num_layers=1, embed_dim=1 << 20, num_heads=8)
    )
    assert all(parameter.is_meta for parameter in module.parameters())


def test_plan_and_cache() -> None:
    shapes = {"decoder_self": SiteShape(num_layers=2, embed_dim=512, num_heads=8)}
    mixed = AttentionPlan.of(
        {
            "decoder_self": [
                AttentionChoice("multi_head"),
                AttentionChoice.of("collaborative", shared_dim=64),
            ]
        }
    )
    assert count_plan(mixed, shapes).parameters == 1_050_624 + 591_488
    assert count_cache(mixed, shapes) == 2 * 512 + (64 + 512)


@pytest.mark.parametrize(
    ("scheme", "options", "cached"),
    [
        ("multi_head", {}, 2 * D),
        ("collaborative", {"shared_dim": 64, "content_bias": True}, 64 + N + D),
        ("head_embedding_add", {}, 2 * H),
        ("head_embedding_mul", {}, 2 * H),
        ("grouped_query", {"num_groups": 2}, 4 * H),
        ("grouped_query", {"num_groups": 2, "num_value_groups": 4}, 6 * H),
        ("grouped_query", {"num_groups": 2, "tied": True}, 2 * H),
        ("grouped_head", {}, 2 * D),
        ("grouped_head", {"kept_heads": 2}, 4 * H),
        ("multi_query", {}, 2 * H),
        ("single_head", {}, 2 * H),
        ("reduced_key", {"key_dim": 64}, 64 + D),
        ("shared_key_value", {}, D),
        ("none", {}, 0),
        ("latent", {}, D // 2),
        ("latent", {"latent_dim": 64}, 64),
    ],
)
def test_cache_of_a_token(scheme: str, options: dict[str, object], cached: int) -> None:
    assert build_attention(scheme, D, N, **options).cache_size() == cached
