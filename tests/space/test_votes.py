"""Spaces in which votes on a trained model are settled, and schemes that stand several times."""

from __future__ import annotations

import itertools

import pytest

from nas_attn.errors import ConfigError, PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.space import SearchSpace, SpaceConfig, Votes
from nas_attn.space.fitting import fitting
from tests.helpers.votes import settled_by

SHAPES = {
    "encoder_self": SiteShape(num_layers=2, embed_dim=16, num_heads=4),
    "decoder_self": SiteShape(num_layers=1, embed_dim=16, num_heads=4),
}
SCHEMES = {
    "multi_head": {},
    "grouped_head (pillars)": {"keep": ["pillars"]},
    "grouped_head (threshold)": {"keep": ["threshold"], "vote_threshold": [0.5, 0.75]},
}
of = AttentionChoice.of
PILLARS = of("grouped_head", keep="pillars")
LOW, HIGH = (of("grouped_head", keep="threshold", vote_threshold=t) for t in (0.5, 0.75))
LEFT = {
    heads: of("grouped_head", kept_heads=len(heads.split(",")), heads=heads, alpha=0.0, beta=0.0)
    for heads in ("0,3", "1,2", "0,1,3")
}


def space(decide: str) -> SearchSpace:
    return SearchSpace(SpaceConfig.model_validate({"schemes": SCHEMES, "decide": decide}), SHAPES)


def votes() -> Votes:
    settled = {}
    for place, heads in (("encoder_self.0", "0,3"), ("encoder_self.1", "1,2")):
        settled |= {(place, choice): LEFT[heads] for choice in (PILLARS, LOW, HIGH)}
    settled |= {("decoder_self.0", choice): LEFT["0,3"] for choice in (PILLARS, HIGH)}
    settled["decoder_self.0", LOW] = LEFT["0,1,3"]
    return Votes(settled)


@pytest.mark.parametrize("decide", ["model", "site", "layer"])
def test_settled_plans_are_what_is_proposed(decide: str) -> None:
    offered = space(decide)
    settled = offered.settled(votes())
    assert [u.options for u in settled.units] == [u.options for u in offered.units]
    layers = {site: shape.num_layers for site, shape in SHAPES.items()}
    seen: dict[AttentionPlan, AttentionPlan] = {}
    for picks in itertools.product(*(range(len(u.alternatives)) for u in offered.units)):
        asked, made = (
            s.plan([u.alternatives[p] for u, p in zip(s.units, picks, strict=True)])
            for s in (offered, settled)
        )
        assert made == settled_by(votes(), asked, layers)
        assert "keep" not in made.dumps()
        first = seen.setdefault(made, asked)
        found = settled.encode(made)
        assert found is not None
        assert settled.plan(found) == made
        assert settled.as_offered(made) == first
        by_words = settled.encode(asked)
        assert by_words is not None
        assert settled.plan(by_words) == made
    assert len(seen) < offered.size, "votes that leave the same heads make the same plan"
    assert settled.settled(votes()).units == settled.units


def test_a_table_of_votes_survives_json() -> None:
    table = votes()
    assert Votes.from_json(table.to_json()) == table
    assert not Votes.from_json([])
    with pytest.raises(PlanError, match="no table of votes"):
        Votes.from_json([{"place": "encoder_self.0"}])
    with pytest.raises(PlanError, match="no table of votes"):
        Votes.from_json(7)


def test_without_votes_all_is_as_offered() -> None:
    offered = space("site")
    assert offered.settled(Votes()).units == offered.units


def test_a_scheme_may_stand_several_times() -> None:
    offered = space("site")
    assert offered.units[0].scheme.values == tuple(SCHEMES)
    assert [key for key, site, _ in offered.choices() if site == "decoder_self"] == [
        "schemes.multi_head",
        "schemes.grouped_head (pillars)",
        "schemes.grouped_head (threshold)",
        "schemes.grouped_head (threshold)",
    ]
    config = SpaceConfig.model_validate({"schemes": SCHEMES})
    wrong = "0.75 does not fit"
    reduced, said = fitting(
        config, SHAPES, lambda choice, _: wrong if "0.75" in str(choice) else None
    )
    assert reduced.schemes["grouped_head (threshold)"]["vote_threshold"] == [0.5]
    assert said == [
        "grouped_head (threshold) with vote_threshold 0.75 (0.75 does not fit), at encoder_self, "
        "decoder_self"
    ]
    twice = {"schemes": {"grouped_head (a)": {"num_groups": [2, 2]}}}
    with pytest.raises(ConfigError) as error:
        SearchSpace(SpaceConfig.model_validate(twice), SHAPES)
    assert error.value.faults[0].key == "schemes.grouped_head (a).num_groups"
