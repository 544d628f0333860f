"""Search spaces: what they hold, encode and refuse."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from nas_attn.errors import ConfigError
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.space import Dimension, SearchSpace, SpaceConfig
from nas_attn.space.fitting import fitting

SHAPES = {
    "encoder_self": SiteShape(num_layers=2, embed_dim=64, num_heads=4),
    "decoder_self": SiteShape(num_layers=3, embed_dim=32, num_heads=4),
    "encoder_decoder": SiteShape(num_layers=3, embed_dim=32, num_heads=4, kdim=64),
}
SCHEMES = {
    "multi_head": {},
    "collaborative": {
        "shared_dim": {"fraction_of_embed_dim": [0.125, 0.5]},
        "content_bias": [False, True],
    },
}


def space(**settings: object) -> SearchSpace:
    return SearchSpace(SpaceConfig.model_validate({"schemes": SCHEMES, **settings}), SHAPES)


@pytest.mark.parametrize(
    ("decide", "units", "size"), [("model", 1, 5), ("site", 3, 5**3), ("layer", 8, 5**8)]
)
def test_sizes(decide: str, units: int, size: int) -> None:
    made = space(decide=decide)
    assert len(made.units) == units
    assert made.size == size


def test_every_plan_encodes_back() -> None:
    made = space()
    plans = set()
    for chosen in itertools.product(*(unit.alternatives for unit in made.units)):
        plan = made.plan(chosen)
        assert made.encode(plan) == chosen
        plans.add(plan)
    assert len(plans) == made.size


def test_fractions_follow_the_width_of_each_site() -> None:
    made = space(decide="model")
    widest = made.plan([made.units[0].alternatives[-1]])
    assert {site: choices[0].to_json()["shared_dim"] for site, choices in widest} == {
        "encoder_self": 32,
        "decoder_self": 16,
        "encoder_decoder": 16,
    }


def test_layers_are_decided_apart() -> None:
    made = space(decide="layer")
    chosen = [unit.alternatives[index % 2] for index, unit in enumerate(made.units)]
    plan = made.plan(chosen)
    layers = plan.layers("decoder_self", 3)
    assert [choice.scheme for choice in layers] == ["multi_head", "collaborative", "multi_head"]
    assert made.encode(plan) == tuple(chosen)


def test_single_sites_may_differ() -> None:
    made = space(sites={"encoder_decoder": {"multi_head": {}}})
    assert made.size == 25
    assert all(dict(made.plan(c).sites)["encoder_decoder"][0].scheme == "multi_head"
               for c in itertools.product(*(u.alternatives for u in made.units)))  # fmt: skip


def test_what_the_space_does_not_hold_has_no_code() -> None:
    made = space(decide="model")
    assert made.encode(AttentionPlan.uniform(AttentionChoice("other"))) is None
    mixed = AttentionPlan.uniform(AttentionChoice("multi_head"), ("encoder_self",)).over(
        AttentionPlan.uniform(AttentionChoice.of("collaborative", shared_dim=4, content_bias=True))
    )
    assert made.encode(mixed) is None


def test_a_unit_asks_only_what_matters() -> None:
    asked = []

    def pick(decision: Dimension) -> int:
        asked.append(decision.name)
        return len(decision.values) - 1

    unit = space().units[0]
    assert unit.choose(pick) == unit.alternatives[-1]
    assert asked == [
        "encoder_self.scheme",
        "encoder_self.collaborative.shared_dim",
        "encoder_self.collaborative.content_bias",
    ]
    asked.clear()
    assert unit.choose(lambda d: asked.append(d.name) or 0) == unit.alternatives[0]
    assert asked == ["encoder_self.scheme"]


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        ((1, 2, 4), True),
        ((0.1, 0.5), True),
        ((4, 2), False),
        ((True, False), False),
        (("a",), False),
    ],
)
def test_order(values: tuple[object, ...], ordered: bool) -> None:
    assert Dimension("x", values).is_ordered == ordered


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"sites": {"encoder_self": SCHEMES}, "decide": "model"}, "sites", "cannot differ"),
        (
            {"schemes": {"collaborative": {"shared_dim": {"fraction_of_embed_dim": [0.3]}}}},
            "schemes.collaborative.shared_dim.fraction_of_embed_dim",
            "0.3 of the embed_dim 64 of encoder_self is no whole number",
        ),
        (
            {"schemes": {"grouped_query": {"num_groups": {"fraction_of_num_heads": [0.3]}}}},
            "schemes.grouped_query.num_groups.fraction_of_num_heads",
            "0.3 of the num_heads 4 of encoder_self is no whole number",
        ),
        (
            {"schemes": {"collaborative": {"shared_dim": [4, 4]}}},
            "schemes.collaborative.shared_dim",
            "the same value stands twice",
        ),
    ],
)
def test_spaces_that_do_not_fit(settings: dict[str, object], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**settings)
    fault = caught.value.faults[0]
    assert fault.key == key
    assert message in fault.message


@pytest.mark.parametrize(
    "broken",
    [
        {"schemes": {}},
        {"schemes": SCHEMES, "decide": "head"},
        {"schemes": SCHEMES, "sites": {"encoder": SCHEMES}},
        {"schemes": {"collaborative": {"shared_dim": []}}},
        {"schemes": {"collaborative": {"shared_dim": {"fraction": [0.5]}}}},
        {"schemes": SCHEMES, "extra": 1},
    ],
)
def test_malformed_spaces(broken: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SpaceConfig.model_validate(broken)


def odd_heads(choice: AttentionChoice, shape: SiteShape) -> str | None:
    """Stands in for what building a module finds."""
    options = dict(choice.options)
    if choice.scheme == "single_head" and shape.embed_dim == 32:
        return "too narrow"
    value = options.get("shared_dim", shape.num_heads)
    return f"{shape.num_heads} heads do not divide {value}" if value % shape.num_heads else None


OFFERED = {
    "multi_head": {},
    "single_head": {},
    "collaborative": {
        "shared_dim": {"fraction_of_embed_dim": [0.03125, 0.0625, 0.25]},
        "num_value_heads": {"fraction_of_num_heads": [0.25, 0.125]},
        "content_bias": [False, True],
    },
}


def fit(**settings: object) -> tuple[SpaceConfig, list[str]]:
    config = SpaceConfig.model_validate({"schemes": OFFERED, **settings})
    return fitting(config, SHAPES, odd_heads)


def test_a_space_is_left_with_what_fits() -> None:
    config, left_out = fit()
    wide, narrow = (SearchSpace(config, SHAPES).units[place] for place in (0, 1))
    assert wide.scheme.values == ("multi_head", "single_head", "collaborative")
    assert narrow.scheme.values == ("multi_head", "collaborative")
    assert [decision.values for decision in wide.options[2]] == [(4, 16), (1,), (False, True)]
    assert [decision.values for decision in narrow.options[1]] == [(8,), (1,), (False, True)]
    assert left_out == [
        "collaborative with shared_dim 0.03125 of the embed_dim (4 heads do not divide 2), at "
        "encoder_self",
        "collaborative with num_value_heads 0.125 of the num_heads (num_value_heads is no whole "
        "number), at encoder_self, decoder_self, encoder_decoder",
        "single_head (too narrow), at decoder_self, encoder_decoder",
        "collaborative with shared_dim 0.03125 of the embed_dim (4 heads do not divide 1), at "
        "decoder_self, encoder_decoder",
        "collaborative with shared_dim 0.0625 of the embed_dim (4 heads do not divide 2), at "
        "decoder_self, encoder_decoder",
    ]


def test_one_choice_for_the_whole_model_must_fit_everywhere() -> None:
    config, _ = fit(decide="model")
    (unit,) = SearchSpace(config, SHAPES).units
    assert unit.scheme.values == ("multi_head", "collaborative")
    assert [decision.values for decision in unit.options[1]] == [(16,), (1,), (False, True)]


def test_what_fits_stays_as_it_is() -> None:
    config = SpaceConfig.model_validate({"schemes": SCHEMES})
    assert fitting(config, SHAPES, lambda choice, shape: None) == (config, [])
    nothing = fitting(config, SHAPES, lambda choice, shape: "no")
    assert nothing == (config, []), "what is left of nothing is refused by who builds it"


BLIND = {"multi_head": {}, "none": {"output_bias": [True]}}


def test_plans_that_do_not_see_the_source_are_not_of_a_space() -> None:
    made = space(decide="layer", schemes=BLIND)
    every = itertools.product(*(unit.alternatives for unit in made.units))
    assert made.size == sum(made.plan(some).source_fault() is None for some in every) == 2**8 - 2**5
    for settings in (
        {"decide": "site"},
        {"decide": "model"},
        {"decide": "layer", "sites": {"encoder_decoder": {"none": {}}}},
    ):
        with pytest.raises(ConfigError, match=r"none: .*the decoder would not see the source"):
            space(schemes=BLIND, **settings)


def test_no_attention_is_left_out_of_shipped_spaces_where_it_would_hide_the_source() -> None:
    config = SpaceConfig.model_validate({"schemes": BLIND, "decide": "layer"})
    shallow = {**SHAPES, "encoder_decoder": SiteShape(num_layers=1, embed_dim=32, num_heads=4)}
    assert fitting(config, SHAPES, lambda *_: None) == (config, [])
    left, said = fitting(config, shallow, lambda *_: None)
    assert said == ["none (the decoder would not see the source), at encoder_decoder"]
    assert set(left.sites["encoder_decoder"]) == {"multi_head"}
    assert set(left.sites["decoder_self"]) == {"multi_head", "none"}
    assert SearchSpace(left, shallow).size == 2**5
