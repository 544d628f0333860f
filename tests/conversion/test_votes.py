"""Votes on trained heads: as training holds them, always the same, and what is left is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, build_attention
from nas_attn.attention.counting import count_choice
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.voting import constraints, count_votes, recording
from nas_attn.conversion import RecordedCall, convert_attention, convert_model, settled_choice
from nas_attn.conversion.metric import attention_scores
from nas_attn.conversion.nesting import nests
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape

WIDTH, HEADS = 32, 8
of = AttentionChoice.of
SHAPE = SiteShape(num_layers=1, embed_dim=WIDTH, num_heads=HEADS)


def trained(scheme: str = "multi_head", **options: object) -> Attention:
    torch.manual_seed(3)
    module = build_attention(scheme, WIDTH, HEADS, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def make_calls(count: int = 5) -> list[RecordedCall]:
    """Self-attention over batches of several lengths, with padding."""
    generator = torch.Generator().manual_seed(5)
    calls = []
    for number in range(count):
        inputs = torch.randn(6, 7 + number, WIDTH, generator=generator)
        padding = torch.zeros(6, 7 + number, dtype=torch.bool)
        padding[1, 4:], padding[3, 2:] = True, True
        calls.append(RecordedCall(inputs, inputs, inputs, padding, query_padding_mask=padding))
    return calls


def voted_in_training(module: Attention, choice: AttentionChoice, seed: int = 0) -> list[int]:
    """The heads that stay by the steps of a training whose vote is due."""
    voter = build_attention(choice.scheme, WIDTH, HEADS, **dict(choice.options)).eval()
    assert isinstance(voter, GroupedHeadAttention)
    voter.load_state_dict(module.state_dict(), strict=False)
    for call in make_calls():
        voter.query_padding_mask = call.query_padding_mask
        with recording([voter]), torch.no_grad():
            voter(call.query, call.key, call.value, call.key_padding_mask, need_weights=False)
        count_votes([voter])
    voter.settle(seed)
    return voter.kept.nonzero().squeeze(1).tolist()


CHOICES = [
    of("grouped_head", keep=keep, feature=feature, num_groups=3, metric=metric, vote_threshold=0.4)
    for keep, feature, metric in itertools.product(
        ("most_votes", "pillars", "threshold", "random"),
        ("value", "attention", "output"),
        ("euclidean", "cosine"),
    )
]


def test_votes_are_those_of_training() -> None:
    module = trained()
    kept = {}
    for choice in CHOICES:
        left = dict(settled_choice(module, choice, make_calls(), seed=2).options)
        kept[choice] = [int(head) for head in str(left["heads"]).split(",")]
        assert kept[choice] == voted_in_training(module, choice, seed=2), choice
        assert left == {
            "heads": left["heads"], "kept_heads": len(kept[choice]), "alpha": 0.0, "beta": 0.0
        }  # fmt: skip
    assert len({tuple(heads) for heads in kept.values()}) > 6, "the options matter"


def test_a_vote_comes_out_the_same_whoever_holds_it_and_leaves_the_model_alone() -> None:
    module, choice = trained(), CHOICES[0]
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first = settled_choice(module, choice, make_calls())
    torch.manual_seed(11)
    assert settled_choice(module.train(), choice, make_calls()) == first
    assert all(torch.equal(weights[n], tensor) for n, tensor in module.state_dict().items())
    assert module.training


def test_padding_has_no_say() -> None:
    calls = make_calls()
    odd = [
        RecordedCall(
            *[c.query.masked_fill(c.query_padding_mask[..., None], float("nan"))] * 3,  # type: ignore[index]
            c.key_padding_mask,
            query_padding_mask=c.query_padding_mask,
        )
        for c in calls
    ]
    for choice in CHOICES[:12]:
        assert settled_choice(trained(), choice, calls) == settled_choice(trained(), choice, odd)


def test_what_is_left_converts_to_these_very_heads() -> None:
    """Also from a module that has only some of them, by the numbers that they began with."""
    module, calls = trained(), make_calls()
    some = settled_choice(module, of("grouped_head", keep="threshold", vote_threshold=0.0), calls)
    assert dict(some.options)["heads"] == "0,1,2,3,4,5,6,7"
    three = of("grouped_head", kept_heads=3, heads="1,4,6", alpha=0.0, beta=0.0)
    two = of("grouped_head", kept_heads=2, heads="1,6", alpha=0.0, beta=0.0)
    with_three = convert_attention(module, three, calls).module
    for start in (module, with_three):
        made = convert_attention(start, two, calls).module
        assert made.num_heads == 2
        wanted = attention_scores(module, calls[0])[:, [1, 6]]
        torch.testing.assert_close(
            _centred(attention_scores(made, calls[0])), _centred(wanted), rtol=1e-3, atol=1e-3
        )
        assert sum(p.numel() for p in made.parameters()) == count_choice(two, SHAPE).parameters
    again = settled_choice(with_three, of("grouped_head", num_groups=2, keep="pillars"), calls)
    assert set(str(dict(again.options)["heads"]).split(",")) < {"1", "4", "6"}


def test_named_heads_nest_where_they_are_there() -> None:
    def nested(narrow: str, wide: str | None, kept: int = 3) -> bool:
        named = of("grouped_head", kept_heads=len(narrow.split(",")), heads=narrow)
        options = {"kept_heads": kept} | ({} if wide is None else {"heads": wide})
        return nests(named, of("grouped_head", **options), SHAPE)

    assert nested("1,6", "1,4,6")
    assert not nested("1,5", "1,4,6")
    assert not nested("1,6", None), "nobody knows which three those are"
    assert nested("1,6", None, kept=8)
    assert nests(of("grouped_head", kept_heads=2), of("grouped_head", kept_heads=3), SHAPE)


def _centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(-1, keepdim=True)


def test_a_plan_that_names_heads_which_are_gone_gets_those_without_which_least_is_lost() -> None:
    calls = make_calls()
    half = convert_attention(trained(), of("grouped_head", kept_heads=4), calls).module
    named = of("grouped_head", kept_heads=2, heads="3,7")
    plain = of("grouped_head", kept_heads=2)
    ours, theirs = (convert_attention(half, choice, calls).module for choice in (named, plain))
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"heads": "0,3"}, "heads names 2, but kept_heads is 8"),
        ({"heads": "0,3", "kept_heads": 3}, "heads names 2, but kept_heads is 3"),
        ({"heads": "3,0", "kept_heads": 2}, "rising"),
        ({"heads": "3,3", "kept_heads": 2}, "rising"),
        ({"heads": "00,3", "kept_heads": 2}, "rising"),
        ({"heads": "0,8", "kept_heads": 2}, "from 0 to 7, but heads has 8"),
        ({"heads": "0, 3", "kept_heads": 2}, "numbers with commas between"),
        ({"heads": "", "kept_heads": 1}, "numbers with commas between"),
        ({"heads": "0,-1", "kept_heads": 2}, "numbers with commas between"),
        ({"heads": 3, "kept_heads": 1}, "heads must be a word"),
    ],
)
def test_heads_that_cannot_be_are_refused(options: dict[str, object], fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        build_attention("grouped_head", WIDTH, HEADS, **options)


def test_a_vote_and_a_number_of_heads_are_one_too_many() -> None:
    choice = of("grouped_head", keep="pillars", kept_heads=3)
    with pytest.raises(PlanError, match="leave out kept_heads"):
        settled_choice(trained(), choice, make_calls())


def test_without_data_training_is_left_to_vote(caplog: pytest.LogCaptureFixture) -> None:
    assert settled_choice(trained(), CHOICES[0], ()) == CHOICES[0]
    assert "without data no vote is held" in caplog.text
    assert settled_choice(trained(), of("multi_query"), ()) == of("multi_query")


def test_pruning_in_training_goes_on_from_named_heads() -> None:
    """What is voted on again keeps the names, and nobody is promised heads that may go."""
    options = {"kept_heads": 3, "heads": "1,4,6", "keep": "pillars", "num_groups": 2}
    module = build_attention("grouped_head", WIDTH, HEADS, **options)
    assert isinstance(module, GroupedHeadAttention)
    module.kept.copy_(torch.tensor([1, 0, 1]))
    _, left = module.cut(module.state_dict(), options)
    assert (left["kept_heads"], left["heads"]) == (2, "1,6")
    for guess in (module.expected(options, HEADS), module.least(options, HEADS)):
        assert guess is not None
        build_attention("grouped_head", WIDTH, HEADS, **guess)
    with recording([module]), torch.no_grad():
        module(*[make_calls()[0].query] * 3, need_weights=False)
    assert len(list(constraints([module]))) == 1


def test_models_of_torch_vote_on_their_data() -> None:
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    batch = torch.randn(4, 9, WIDTH)
    plan = AttentionPlan.of({"encoder_self": of("grouped_head", num_groups=2, keep="pillars")})
    converted = convert_model(model, plan, lambda m: m(batch))
    assert [dict(one.choice.options)["kept_heads"] for one in converted] == [2, 2]
    assert all(len(str(dict(one.choice.options)["heads"]).split(",")) == 2 for one in converted)
