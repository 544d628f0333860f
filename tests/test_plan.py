"""Plans: forms, equality, digests."""

import json
import os
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_attn.attention.registry import SCHEMES
from nas_attn.errors import PlanError
from nas_attn.plan import FLOAT_OPTIONS, MAX_FILE_BYTES, SITES, AttentionChoice, AttentionPlan
from tests.helpers.paths import ROOT

SHIPPED = [path for name in ("search_spaces", "studies") for path in (ROOT / name).glob("*.yaml")]

MULTI_HEAD = AttentionChoice("multi_head")
SHARED = AttentionChoice.of("collaborative", shared_dim=16, content_bias=True)

choices = st.builds(
    lambda scheme, options: AttentionChoice.of(scheme, **options),
    st.sampled_from(["multi_head", "collaborative", "other"]),
    st.dictionaries(
        st.sampled_from(["shared_dim", "content_bias", "name"]),
        st.one_of(st.integers(1, 9), st.booleans(), st.text(max_size=3)),
        max_size=2,
    ),
)
plans = st.builds(
    AttentionPlan.of,
    st.dictionaries(st.sampled_from(SITES), st.lists(choices, min_size=1, max_size=4), min_size=1),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(plans)
def test_json_round_trip(plan: AttentionPlan) -> None:
    again = AttentionPlan.parse(plan.dumps())
    assert again == plan
    assert (again.dumps(), again.digest, hash(again)) == (plan.dumps(), plan.digest, hash(plan))


def test_the_same_everywhere_is_one_plan() -> None:
    spelled = AttentionPlan.of({"decoder_self": [SHARED, SHARED], "encoder_self": [MULTI_HEAD]})
    short = AttentionPlan.of({"encoder_self": MULTI_HEAD, "decoder_self": SHARED})
    assert spelled == short
    assert spelled.digest == short.digest
    assert short.layers("decoder_self", 3) == (SHARED,) * 3


def test_text_form() -> None:
    assert str(AttentionPlan.uniform(MULTI_HEAD)) == "everywhere multi_head"
    mixed = AttentionPlan.of(
        {"encoder_self": [SHARED, SHARED, MULTI_HEAD], "encoder_decoder": MULTI_HEAD}
    )
    assert str(mixed) == (
        "encoder_self [2x collaborative(content_bias=True, shared_dim=16) | multi_head]; "
        "encoder_decoder multi_head"
    )


def test_equal_plans_have_one_text() -> None:
    """As shipped spaces write them: options that are floats have a point, whatever a file says."""
    texts = [
        f'{{"encoder_self": {{"scheme": "grouped_head", "num_groups": 1, {options}}}}}'
        for options in (
            '"alpha": 1, "beta": 0',
            '"alpha": 1.0, "beta": 0.0',
            '"alpha": 1, "beta": -0.0',
            '"beta": 0, "alpha": 10e-1',
        )
    ]
    plans = [AttentionPlan.parse(text) for text in texts]
    assert len(set(plans)) == 1
    assert {plan.dumps() for plan in plans} == {
        '{"encoder_self": {"alpha": 1.0, "beta": 0.0, "num_groups": 1, "scheme": "grouped_head"}}'
    }
    assert len({plan.digest for plan in plans}) == len({str(plan) for plan in plans}) == 1
    assert AttentionChoice.of("grouped_head", alpha=1).to_json() == {
        "scheme": "grouped_head",
        "alpha": 1.0,
    }
    direct = AttentionChoice("grouped_head", (("alpha", 1),))
    assert str(direct) == "grouped_head(alpha=1.0)"


def test_options_that_cannot_be_are_left_to_who_builds_the_module() -> None:
    for value in (True, "1", 10**400, 2**60 + 1):
        choice = AttentionChoice.of("grouped_head", alpha=value)
        assert choice.to_json()["alpha"] is value


def test_the_float_options_are_those_of_the_schemes() -> None:
    of_schemes = {
        (name, bool({float, float | None} & {hint}))
        for scheme in SCHEMES.values()
        for name, hint in get_type_hints(scheme.options).items()
    }
    assert {name for name, is_float in of_schemes if is_float} == FLOAT_OPTIONS
    assert not FLOAT_OPTIONS & {name for name, is_float in of_schemes if not is_float}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_texts_of_shipped_spaces_do_not_change(path: Path) -> None:
    """They write floats where options are floats, so what they recorded keeps its text."""
    tree = yaml.safe_load(path.read_text())
    space = tree.get("space", tree)
    if isinstance(space, str):
        return  # named, and looked at under its own name
    for schemes in (space["schemes"], *space.get("sites", {}).values()):
        for options in schemes.values():
            for name in options.keys() & FLOAT_OPTIONS:
                assert all(isinstance(value, float) for value in options[name]), name


def test_defaults_fill_the_sites_left_out() -> None:
    plan = AttentionPlan.of({"decoder_self": SHARED})
    full = plan.over(AttentionPlan.uniform(MULTI_HEAD))
    assert dict(full.sites)["decoder_self"] == (SHARED,)
    assert dict(full.sites)["encoder_self"] == (MULTI_HEAD,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be a mapping of sites, but is list"),
        ({"decoder": "multi_head"}, "unknown site 'decoder'; sites are encoder_self, decoder_self"),
        ({"decoder_self": []}, "site 'decoder_self' has no choice"),
        ({"decoder_self": ["multi_head", 3]}, r"decoder_self\[1\]: a choice must be"),
        ({"decoder_self": {"shared_dim": 3}}, r"decoder_self\[0\]: a choice must be"),
        (
            {"decoder_self": {"scheme": "x", "a": [1]}},
            r"option 'a' must be a number, bool or string",
        ),
    ],
)
def test_malformed_plans(data: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        AttentionPlan.parse(json.dumps(data)) if isinstance(
            data, dict
        ) else AttentionPlan.from_json(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/dev/zero", "is not JSON"),
        ("{", "plan is not JSON"),
        ('{"encoder_self": ' + "[" * 100_000, "nested too deeply"),
        ('{"encoder_self": {"scheme": "x", "a": ' + "1" * 5000 + "}}", "is not JSON"),
        (3, "must be JSON text, but is int"),
    ],
)
def test_what_a_checkpoint_says_is_json_text(text: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        AttentionPlan.parse(text)


def test_files_of_plans(tmp_path: Path) -> None:
    plan = AttentionPlan.uniform(SHARED)
    file, pipe, large = (tmp_path / name for name in ("plan.json", "pipe", "large.json"))
    file.write_text(plan.dumps())
    os.mkfifo(pipe)
    large.write_text(plan.dumps() + " " * MAX_FILE_BYTES)
    assert AttentionPlan.read(str(file)) == AttentionPlan.read(plan.dumps()) == plan
    for name in ("/dev/zero", str(pipe), str(tmp_path)):
        with pytest.raises(PlanError, match="no regular file"):
            AttentionPlan.read(name)
    with pytest.raises(PlanError, match="larger than"):
        AttentionPlan.read(str(large))
    with pytest.raises(PlanError, match=r"nowhere.json: No such file"):
        AttentionPlan.read("nowhere.json")
    file.write_bytes(b"\xff")
    with pytest.raises(PlanError, match="no text in UTF-8"):
        AttentionPlan.read(str(file))


def test_layers_that_do_not_fit() -> None:
    plan = AttentionPlan.of({"decoder_self": [SHARED, MULTI_HEAD]})
    with pytest.raises(PlanError, match="2 choices given for 3 layers"):
        plan.layers("decoder_self", 3)
    with pytest.raises(PlanError, match="says nothing about site 'encoder_self'"):
        plan.layers("encoder_self", 2)
