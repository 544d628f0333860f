"""Parameters to the unit, against the closed formulas of the papers."""

import pytest

from nas_attn.attention.counting import build_on_meta, count_cache, count_choice, count_plan
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

BASE = SiteShape(num_layers=6, embed_dim=512, num_heads=8)


def test_multi_head_layer() -> None:
    assert count_choice(AttentionChoice("multi_head"), BASE) == 4 * 512**2 + 4 * 512 == 1_050_624


@pytest.mark.parametrize(
    ("shared_dim", "expected"), [(512, 1_054_720), (256, 790_016), (128, 657_664), (64, 591_488)]
)
def test_collaborative_layer(shared_dim: int, expected: int) -> None:
    d, heads = 512, 8
    formula = 2 * (d * shared_dim + shared_dim) + heads * shared_dim + 2 * (d**2 + d)
    assert (
        count_choice(AttentionChoice.of("collaborative", shared_dim=shared_dim), BASE) == expected
    )
    assert formula == expected


def test_collaborative_layer_with_content_bias() -> None:
    choice = AttentionChoice.of("collaborative", shared_dim=256, content_bias=True)
    d, heads, shared = 512, 8, 256
    assert count_choice(choice, BASE) == 2 * d * shared + heads * shared + heads * d + 2 * (
        d**2 + d
    )
    assert count_choice(choice, BASE) == 793_600


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
    assert count_plan(mixed, shapes) == 1_050_624 + 591_488
    assert count_cache(mixed, shapes) == 2 * 512 + (64 + 512)
