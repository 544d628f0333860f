"""What nests is held exactly: weights are converted from the narrow scheme to the wide one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, build_attention
from nas_attn.conversion import RecordedCall, convert_attention
from nas_attn.conversion.nesting import nests, plan_nests
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from tests.helpers.attention import distance

of = AttentionChoice.of

WIDTH, HEADS = 24, 4  # heads of 6
SHAPE = SiteShape(num_layers=2, embed_dim=WIDTH, num_heads=HEADS)
CHOICES = [
    of("multi_head"),
    of("grouped_query"),
    of("grouped_query", num_groups=1),
    of("grouped_query", num_groups=4, num_value_groups=2),
    of("grouped_query", num_groups=1, num_value_groups=4),
    of("grouped_query", num_groups=2, tied=True),
    of("none"),
    of("none", output_bias=True),
    of("multi_query"),
    of("grouped_head"),
    of("grouped_head", kept_heads=3, alpha=0.0, num_groups=1),
    of("grouped_head", kept_heads=1),
    of("reduced_key"),
    of("reduced_key", key_dim=12),
    of("reduced_key", key_dim=32),
    of("shared_key_value"),
    of("head_embedding_mul"),
    of("head_embedding_mul", plain_embedding=True),
    of("head_embedding_add"),
    of("single_head"),
    of("single_head", narrow_output=True),
    of("collaborative", shared_dim=2),
    of("collaborative", shared_dim=3, num_value_heads=2),
    of("collaborative", shared_dim=6, num_value_heads=1),
    of("collaborative", shared_dim=6, num_value_heads=2),
    of("collaborative", shared_dim=12),
    of("collaborative", shared_dim=12, content_bias=True),
    of("collaborative", shared_dim=2, num_value_heads=1, content_bias=True),
    of("collaborative", shared_dim=24),
    of("collaborative", shared_dim=24, num_value_heads=2),
    of("latent", latent_dim=4),
    of("latent", latent_dim=13),
    of("latent", latent_dim=24),
]
WHOLE = [c for c in CHOICES if all(nests(other, c, SHAPE) for other in CHOICES)]
"""They hold what multi-head attention does."""


def build(choice: AttentionChoice) -> Attention:
    torch.manual_seed(3)
    module = build_attention(choice.scheme, WIDTH, HEADS, **dict(choice.options))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def make_call() -> RecordedCall:
    generator = torch.Generator().manual_seed(5)

    def some(time: int) -> Tensor:
        return torch.randn(3, time, WIDTH, generator=generator, dtype=torch.float64) + 0.3

    key = some(9)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[0, 6:] = True
    return RecordedCall(some(7), key, key, key_padding_mask=padding)


@pytest.mark.parametrize("narrow", CHOICES, ids=str)
def test_what_nests_is_held_exactly(narrow: AttentionChoice) -> None:
    source, call = build(narrow), make_call()
    options = dict(narrow.options)
    # Heads that compare in more dimensions than one of multi-head attention were not made of such.
    dims = options.get("shared_dim", 0) + options.get("content_bias", False)
    is_wider = dims > WIDTH // HEADS or options.get("key_dim", 0) > WIDTH
    # Of what holds everything one is enough: which schemes hold multi-head attention is known.
    wide = [c for c in CHOICES if c not in WHOLE[0 if is_wider else 1 :] or c == narrow]
    held = [c for c in wide if nests(narrow, c, SHAPE)]
    assert narrow in held
    for choice in held:
        converted = convert_attention(source, choice, force=True).module
        assert distance(source, converted, call) < 1e-9, choice


@pytest.mark.parametrize(
    "narrow", [of("grouped_head", kept_heads=1), of("single_head", narrow_output=True)], ids=str
)
def test_no_head_is_lost_where_there_are_more_by_data_either(narrow: AttentionChoice) -> None:
    source, call = build(narrow), make_call()
    wide = of("grouped_head", kept_heads=3)
    held = convert_attention(source, wide, [call], refit=False).module
    assert distance(source, held, call) < 1e-9


def test_what_holds_everything() -> None:
    assert [
        of("multi_head"),
        of("grouped_head"),
        of("reduced_key", key_dim=32),
        of("collaborative", shared_dim=24),
        of("latent", latent_dim=24),
    ] == WHOLE


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (of("multi_query"), of("grouped_query", num_groups=2)),
        (of("grouped_head", kept_heads=1, alpha=0.1), of("grouped_head", kept_heads=3)),
        (of("reduced_key", key_dim=8), of("reduced_key", key_dim=12)),
        (of("collaborative", shared_dim=5), of("collaborative", shared_dim=8)),
        (of("collaborative", shared_dim=5, num_value_heads=1), of("collaborative", shared_dim=5)),
        (of("head_embedding_mul"), of("collaborative", shared_dim=7, num_value_heads=1)),
        (of("collaborative", shared_dim=3), of("reduced_key", key_dim=12)),
        (of("head_embedding_mul"), of("multi_query")),
        (of("head_embedding_add"), of("multi_query")),
        (of("single_head"), of("head_embedding_add")),
        (of("shared_key_value"), of("multi_head")),
        (of("grouped_query", num_groups=2, tied=True), of("shared_key_value")),
        (of("grouped_query"), of("grouped_query", num_groups=4, num_value_groups=2)),
        (
            of("grouped_query", num_groups=1, num_value_groups=4),
            of("grouped_query", num_groups=2, num_value_groups=4),
        ),
        (of("none", output_bias=True), of("single_head")),
        (of("none"), of("none", output_bias=True)),
        (of("multi_query"), of("latent", latent_dim=12)),
        (of("latent", latent_dim=5), of("latent", latent_dim=6)),
        (of("latent", latent_dim=6), of("multi_query")),
        (of("latent", latent_dim=3), of("reduced_key", key_dim=12)),
    ],
    ids=str,
)
def test_what_nests_one_way(narrow: AttentionChoice, wide: AttentionChoice) -> None:
    assert nests(narrow, wide, SHAPE)
    assert not nests(wide, narrow, SHAPE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of("multi_query"), of("grouped_query", num_groups=1)),
        (of("grouped_head", alpha=0.1, kept_heads=3), of("grouped_head", beta=0.0, kept_heads=3)),
        (of("head_embedding_mul"), of("collaborative", shared_dim=6, num_value_heads=1)),
        (of("grouped_query"), of("grouped_query", num_groups=2)),
        (of("multi_head"), of("reduced_key", key_dim=24)),
        (of("shared_key_value"), of("grouped_query", num_groups=4, tied=True)),
    ],
    ids=str,
)
def test_what_computes_the_same_nests_both_ways(
    one: AttentionChoice, other: AttentionChoice
) -> None:
    assert nests(one, other, SHAPE)
    assert nests(other, one, SHAPE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of("grouped_query", num_groups=2), of("collaborative", shared_dim=23)),
        (
            of("reduced_key", key_dim=8),
            of("collaborative", shared_dim=8, num_value_heads=2),
        ),
        (of("collaborative", shared_dim=8), of("collaborative", shared_dim=9, num_value_heads=2)),
        (of("shared_key_value"), of("grouped_query")),
        (
            of("grouped_query", num_groups=4, num_value_groups=1),
            of("grouped_query", num_groups=1, num_value_groups=4),
        ),
        (of("multi_query"), of("shared_key_value")),
        (of("multi_query"), of("latent", latent_dim=11)),
        (of("latent", latent_dim=12), of("grouped_query")),
        (of("grouped_head", keep="pillars"), of("multi_head")),
        (of("grouped_head", kept_heads=2), of("grouped_head", keep="pillars")),
    ],
    ids=str,
)
def test_what_nests_in_neither(one: AttentionChoice, other: AttentionChoice) -> None:
    assert not nests(one, other, SHAPE)
    assert not nests(other, one, SHAPE)
    assert nests(one, one, SHAPE)


def test_a_plan_nests_where_all_its_modules_do() -> None:
    shapes = {"decoder_self": SHAPE, "encoder_decoder": SHAPE}
    one, two = of("multi_query"), of("grouped_query", num_groups=2)
    small = AttentionPlan.of({"decoder_self": [one, two], "encoder_decoder": one})
    large = AttentionPlan.of({"decoder_self": two, "encoder_decoder": [two, one]})
    other = AttentionPlan.of({"decoder_self": [two, one], "encoder_decoder": two})
    assert plan_nests(small, large, shapes)
    assert not plan_nests(large, small, shapes)
    assert not plan_nests(small, other, shapes)
