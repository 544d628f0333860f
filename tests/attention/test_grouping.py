"""Groups of heads, the group constraint, votes and pruning of modules."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas_attn.attention import build_attention
from nas_attn.attention.counting import count_choice, expected_plan, least_plan
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.grouping import (
    centre_shift,
    constraint_terms,
    group_heads,
    inner_products,
    normalise,
    together,
    vote,
)
from nas_attn.attention.pruning import Phase, PrunableAttention
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice, AttentionPlan, SiteShape
from nas_attn.pruned import left_text


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.double, generator=generator)


def products_of(features: Tensor) -> Tensor:
    """(L, n, width) to (L, n, n)."""
    return features @ features.transpose(1, 2)


def spread(features: Tensor, labels: Tensor) -> float:
    """Sum of squared distances to the means of groups."""
    groups = [features[labels == group] for group in labels.unique()]
    return float(sum((members - members.mean(dim=0)).square().sum() for members in groups))


@pytest.mark.parametrize("num_groups", [2, 3])
def test_groups_are_the_best_that_there_are(num_groups: int) -> None:
    """K-means is hard in general, but eight heads can be tried out."""
    features = draw(6, 8, 20)
    labels = group_heads(products_of(features), num_groups)
    every = [
        torch.tensor(found)
        for found in itertools.product(range(num_groups), repeat=8)
        if len(set(found)) == num_groups
    ]
    for layer in range(6):
        least = min(spread(features[layer], found) for found in every)
        assert spread(features[layer], labels[layer]) == pytest.approx(least)


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 9),
    num_groups=st.integers(1, 10),
    width=st.integers(1, 4),
    are_equal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_group_is_empty(
    heads: int, num_groups: int, width: int, are_equal: bool, seed: int
) -> None:
    features = draw(2, heads, width, seed=seed)
    if are_equal:
        features = features[:, :1].expand(-1, heads, -1)
    labels = group_heads(products_of(features), num_groups)
    for layer in labels:
        assert set(layer.tolist()) == set(range(min(heads, num_groups)))
        firsts = [layer.tolist().index(group) for group in range(min(heads, num_groups))]
        assert firsts == sorted(firsts)


def test_two_far_clusters_are_found_and_nothing_random_is_touched() -> None:
    features = draw(1, 8, 5) * 0.1
    far = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    features[0, far == 1] += 10.0
    before = torch.get_rng_state()
    assert group_heads(products_of(features), 2).tolist() == [far.tolist()]
    assert torch.equal(before, torch.get_rng_state())


def test_inner_products_leave_padding_out() -> None:
    features = draw(2, 4, 5, 3)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    kept = torch.cat([features[0].flatten(1), features[1, :, :3].flatten(1)], dim=1)
    torch.testing.assert_close(inner_products(features, padding), kept @ kept.t())
    whole = features.transpose(0, 1).flatten(1)
    torch.testing.assert_close(inner_products(features), whole @ whole.t())


def test_the_terms_are_cosines_and_so_are_their_gradients() -> None:
    """Against cosines of the vectors themselves, whose centres are differentiated too."""
    features = draw(2, 6, 7).requires_grad_()
    labels = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 2, 0]])
    within, between = constraint_terms(products_of(features), labels)
    (within - between).sum().backward()
    found, features.grad = features.grad, None
    expected = features.new_zeros(())
    for layer in range(2):
        centres = torch.stack(
            [features[layer, labels[layer] == group].mean(dim=0) for group in range(3)]
        )
        own = F.cosine_similarity(features[layer], centres[labels[layer]], dim=1).mean()
        pairs = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(centres, 2)]
        torch.testing.assert_close(within[layer], own)
        torch.testing.assert_close(between[layer], torch.stack(pairs).mean())
        expected = expected + own - torch.stack(pairs).mean()
    expected.backward()
    torch.testing.assert_close(found, features.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "loss"), [("orthogonal", -0.7), ("alike", -0.7 + 0.4), ("opposite", -0.7 - 0.4)]
)
def test_the_constraint_at_its_extremes(kind: str, loss: float) -> None:
    """Between -alpha - beta and alpha + beta; for these heads exactly so much."""
    second = {"orthogonal": [0.0, 1.0], "alike": [1.0, 0.0], "opposite": [-1.0, 0.0]}[kind]
    features = torch.tensor([[[1.0, 0.0]] * 3 + [second] * 3], dtype=torch.double)
    within, between = constraint_terms(products_of(features), torch.tensor([[0, 0, 0, 1, 1, 1]]))
    assert float(0.4 * between - 0.7 * within) == pytest.approx(loss, abs=1e-9)


def test_a_vote_is_for_the_head_nearest_to_each_centre() -> None:
    features = draw(3, 8, 4)
    labels = group_heads(products_of(features), 3)
    votes = vote(products_of(features), labels)
    for layer in range(3):
        for group in range(3):
            members = (labels[layer] == group).nonzero().squeeze(1)
            centre = features[layer, members].mean(dim=0)
            distances = (features[layer, members] - centre).norm(dim=1)
            nearest = members[0] if len(members) == 2 else members[distances.argmin()]
            assert votes[layer, members].tolist() == (members == nearest).long().tolist()


def test_cosines_vote_for_the_nearest_too() -> None:
    """The released code keeps the head farthest from its centre with this metric."""
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.1, 2.5], dtype=torch.double)
    features = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    features = features * torch.tensor([9.0, 1.0, 5.0, 3.0, 8.0, 1.0])[:, None]
    products = normalise(products_of(features))
    labels = group_heads(products, 2)
    assert labels.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert vote(products, labels).tolist() == [[0, 1, 0, 0, 1, 0]]


def test_centres_shift_by_what_regrouping_moves_them() -> None:
    features = draw(1, 4, 6)
    now, before = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    assert float(centre_shift(products_of(features), now, 1 - now)) == 0.0
    moved = sum(
        (
            features[0, now[0] == now[0, head]].mean(dim=0)
            - features[0, before[0] == before[0, head]].mean(dim=0)
        )
        .square()
        .sum()
        for head in range(4)
    )
    expected = math.sqrt(float(moved / features.square().sum()))
    assert float(centre_shift(products_of(features), now, before)) == pytest.approx(expected)


def grouped(**options: object) -> GroupedHeadAttention:
    torch.manual_seed(3)
    module = build_attention("grouped_head", 16, 8, **options)
    assert isinstance(module, GroupedHeadAttention)
    return module.double()


@pytest.mark.parametrize("feature", ["value", "attention", "output"])
@pytest.mark.parametrize("padding_in_features", [False, True])
def test_features_are_what_their_names_say(feature: str, padding_in_features: bool) -> None:
    module = grouped(feature=feature, padding_in_features=padding_in_features)
    query, key = draw(2, 4, 16), draw(2, 5, 16, seed=1)
    key_padding = torch.zeros(2, 5, dtype=torch.bool)
    key_padding[1, 3:] = True
    query_padding = torch.zeros(2, 4, dtype=torch.bool)
    query_padding[0, 2:] = True
    _, weights = module(query, key, key, key_padding, average_attn_weights=False)
    assert module.products is None
    module.is_recording, module.query_padding_mask = True, query_padding
    module(query, key, key, key_padding, need_weights=False)
    values = module.values(key)
    features, padding = {
        "value": (values, key_padding),
        "attention": (weights, query_padding),
        "output": (weights @ values, query_padding),
    }[feature]
    expected = inner_products(features, None if padding_in_features else padding)
    torch.testing.assert_close(module.products, expected)


def vote_by_hand(module: GroupedHeadAttention, votes: list[int], groups: list[int]) -> list[int]:
    module.votes.copy_(torch.tensor(votes))
    module.together.copy_(10 * together(torch.tensor([groups]))[0])
    return module.choose(0).nonzero().squeeze(1).tolist()


VOTES, GROUPS = [9, 8, 3, 1, 5, 0, 2, 2], [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": "most_votes"}, [0, 1]),
        ({"keep": "pillars"}, [0, 4]),
        ({"keep": "threshold", "vote_threshold": 1.0}, [0, 4]),
        ({"keep": "threshold", "vote_threshold": 0.8}, [0, 1, 4]),
        ({"keep": "threshold", "vote_threshold": 0.4}, [0, 1, 4, 6, 7]),
        ({"keep": "threshold", "vote_threshold": 0.0}, list(range(8))),
    ],
)
def test_rules_of_the_vote(options: dict[str, object], kept: list[int]) -> None:
    """Most votes may both be of one group; pillars and thresholds look at groups."""
    assert vote_by_hand(grouped(**options), VOTES, GROUPS) == kept


def test_ties_go_to_the_lower_head_and_the_lot_is_drawn_alike() -> None:
    assert vote_by_hand(grouped(keep="most_votes"), [4] * 8, GROUPS) == [0, 1]
    assert vote_by_hand(grouped(keep="pillars"), [4] * 8, GROUPS) == [0, 4]
    by_lot = grouped(keep="random", num_groups=3)
    before = torch.get_rng_state()
    first = by_lot.choose(5)
    assert torch.equal(first, by_lot.choose(5))
    assert int(first.sum()) == 3
    assert len({tuple(by_lot.choose(seed).tolist()) for seed in range(9)}) > 3
    assert torch.equal(before, torch.get_rng_state())


def cut(module: PrunableAttention, scheme: str, **options: object) -> PrunableAttention:
    state, left = module.cut(module.state_dict(), options)
    small = build_attention(scheme, 16, 8, **left).double().eval()
    small.load_state_dict(state)
    assert isinstance(small, PrunableAttention)
    return small


@pytest.mark.parametrize("bias", [True, False])
def test_masked_heads_equal_pruned_heads(bias: bool) -> None:
    torch.manual_seed(3)
    options = {"keep": "pillars", "centre_shift": 0.1}
    module = build_attention("grouped_head", 16, 8, bias=bias, **options).double().eval()
    assert isinstance(module, GroupedHeadAttention)
    x = draw(2, 5, 16)
    whole = module(x, x, x)[0]
    module.votes.copy_(torch.tensor(VOTES))
    module.together.copy_(10 * together(torch.tensor([GROUPS]))[0])
    module.settle(0)
    masked = module(x, x, x)[0]
    assert not torch.allclose(masked, whole)
    state, left = module.cut(module.state_dict(), options)
    assert left == {"kept_heads": 2}
    small = build_attention("grouped_head", 16, 8, bias=bias, **left).double().eval()
    small.load_state_dict(state)
    assert small.cache_size() == 2 * 2 * 2
    torch.testing.assert_close(small(x, x, x)[0], masked, rtol=0, atol=1e-12)
    copied = build_attention("grouped_head", 16, 8, bias=bias, **options).double().eval()
    copied.load_state_dict(module.state_dict())
    assert torch.equal(copied(x, x, x)[0], masked), "a loaded mask acts"


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As fairseq's script averages: sums, whole numbers divided as such."""
    sums = {name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]}
    count = len(states)
    return {n: t / count if t.is_floating_point() else t // count for n, t in sums.items()}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (1, 1, "parts are masked"),
        (2, 1, "parts are masked"),
        (1, 3, "parts are masked"),
        (0, 2, None),
        (2, 0, None),
    ],
)
def test_an_average_over_a_vote_is_refused(before: int, after: int, message: str | None) -> None:
    """Its phase would be another, and heads would vote again, or stay masked without a vote."""
    module = build_attention("grouped_head", 16, 8, keep="pillars")
    assert isinstance(module, GroupedHeadAttention)
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.votes.copy_(torch.tensor(VOTES))
    module.settle(0, epoch=3, batches=20)
    mixed = averaged([first] * before + [module.state_dict()] * after)
    copied = nn.Sequential(build_attention("grouped_head", 16, 8, keep="pillars"))
    named = {f"0.{name}": tensor for name, tensor in mixed.items()}
    if message is None:
        copied.load_state_dict(named)
        return
    with pytest.raises(PlanError, match=f"0: {message}.* average only checkpoints from after it"):
        copied.load_state_dict(named)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("schedule", [4, 0, 0], r"its schedule \[4.0, 0.0, 0.0\] is no moment of a training"),
        ("schedule", [3, -1, 0], "is no moment"),
        ("kept", [0] * 8, "a part that stays"),
        ("kept", [1, 1, 1, 1, 2, 1, 1, 1], "zeros and ones"),
        ("kept", [1, 1, 1, 1, 0.5, 1, 1, 1], "zeros and ones"),
        ("kept", [1, 1, 1, 1, 0, 1, 1, 1], "parts are masked"),
        ("votes", VOTES, "votes are counted, though its vote has not begun"),
    ],
)
def test_what_no_training_can_leave_is_refused(
    name: str, values: list[float], message: str
) -> None:
    module = build_attention("grouped_head", 16, 8, keep="pillars")
    state = {**module.state_dict(), name: torch.tensor(values)}
    with pytest.raises(PlanError, match=message):
        module.load_state_dict(state)
    assert isinstance(module, GroupedHeadAttention)
    assert module.kept.all() and not module.schedule.any(), "nothing was taken"


def test_votes_of_old_on_heads_that_all_stay() -> None:
    """Version 0.1 also counted where nothing was pruned, beside modules that were."""
    module = build_attention("grouped_head", 16, 8)
    module.load_state_dict({**module.state_dict(), "votes": torch.tensor(VOTES)})


@pytest.mark.parametrize("content_bias", [True, False])
def test_light_shared_dimensions_are_pruned(content_bias: bool) -> None:
    torch.manual_seed(3)
    options = {"shared_dim": 8, "dim_threshold": 0.3, "content_bias": content_bias}
    module = build_attention("collaborative", 16, 8, **options).double().eval()
    assert isinstance(module, PrunableAttention)
    with torch.no_grad():
        module.mixing[:, [1, 4, 6]] *= 0.01
        # The scale of one factor alone says nothing.
        module.mixing[:, 2] *= 1e-3
        module.q_proj.weight[2] *= 1e3
        if module.q_proj.bias is not None:
            module.q_proj.bias[2] *= 1e3
    x = draw(2, 5, 16)
    module.settle(0)
    assert module.kept.tolist() == [1, 0, 1, 1, 0, 1, 0, 1]
    masked = module(x, x, x)[0]
    small = cut(module, "collaborative", **options)
    assert small.cache_size() == module.cache_size() - 3
    torch.testing.assert_close(small(x, x, x)[0], masked, rtol=0, atol=1e-12)
    with torch.no_grad():
        module.mixing[:, [1, 4, 6]] = 7.0
    torch.testing.assert_close(module(x, x, x)[0], masked)


def test_counts_of_the_paper() -> None:
    """131,264 parameters a head (Ni et al. 2023)."""
    shape = SiteShape(num_layers=6, embed_dim=512, num_heads=8)
    counts = {
        heads: count_choice(AttentionChoice.of("grouped_head", kept_heads=heads), shape).parameters
        for heads in range(1, 9)
    }
    assert counts[8] == 1_050_624
    assert [counts[h] for h in (6, 4, 3, 2, 1)] == [788_096, 525_568, 394_304, 263_040, 131_776]
    assert {counts[heads + 1] - counts[heads] for heads in range(1, 8)} == {131_264}
    large = SiteShape(num_layers=16, embed_dim=1024, num_heads=16)
    half = count_choice(AttentionChoice.of("grouped_head", kept_heads=8), large).parameters
    whole = count_choice(AttentionChoice("multi_head"), large).parameters
    assert 201_541_632 - 16 * (whole - half) == 167_962_624


def test_what_is_left_is_known_before_training_or_not() -> None:
    shapes = {"encoder_self": SiteShape(num_layers=2, embed_dim=16, num_heads=8)}

    def expected(choice: AttentionChoice) -> tuple[str, bool]:
        plan, certain = expected_plan(AttentionPlan.of({"encoder_self": choice}), shapes)
        return str(plan), certain

    head = AttentionChoice.of
    assert expected(head("grouped_head")) == ("encoder_self grouped_head", True)
    assert expected(head("grouped_head", keep="pillars", num_groups=3))[0].count("kept_heads=3")
    assert expected(head("grouped_head", keep="most_votes"))[0].count("kept_heads=2")
    assert not expected(head("grouped_head", keep="threshold"))[1]
    assert not expected(head("collaborative", dim_threshold=0.2))[1]
    assert expected(head("collaborative", shared_dim=4)) == (
        "encoder_self collaborative(shared_dim=4)",
        True,
    )


@pytest.mark.parametrize(
    ("scheme", "options", "least"),
    [
        ("multi_head", {}, {}),
        ("grouped_head", {"num_groups": 3}, {"num_groups": 3}),
        ("grouped_head", {"keep": "threshold", "num_groups": 3}, {"kept_heads": 3}),
        ("grouped_head", {"keep": "threshold", "kept_heads": 2, "num_groups": 3}, {}),
        ("grouped_head", {"keep": "threshold", "vote_threshold": 0.0}, {}),
        ("grouped_head", {"keep": "pillars", "vote_threshold": 0.0}, {"kept_heads": 2}),
        ("collaborative", {"shared_dim": 8, "dim_threshold": 0.0}, {}),
        ("collaborative", {"shared_dim": 8, "dim_threshold": 0.2}, {"shared_dim": 1}),
        (
            "collaborative",
            {"shared_dim": 8, "dim_threshold": 1.0, "mixing_init": "heads"},
            {"shared_dim": 1},
        ),
    ],
)
def test_no_training_leaves_less_than_the_least(
    scheme: str, options: dict[str, object], least: dict[str, object]
) -> None:
    shape = SiteShape(num_layers=1, embed_dim=16, num_heads=8)
    plan = AttentionPlan.of({"encoder_self": AttentionChoice.of(scheme, **options)})
    (_, (found,)), *_ = least_plan(plan, {"encoder_self": shape})
    kept = {name: value for name, value in options.items() if name in dict(found.options)}
    assert dict(found.options) == {**kept, **least}
    module = build_attention(scheme, 16, 8, **options)
    if not isinstance(module, PrunableAttention) or not module.is_prunable:
        return
    smallest = count_choice(found, shape)
    for seed in range(20):
        if isinstance(module, GroupedHeadAttention):
            generator = torch.Generator().manual_seed(seed)
            module.votes.copy_(torch.randint(0, 9, (len(module.votes),), generator=generator))
            labels = torch.arange(len(module.votes))[None] % module.num_groups
            module.together.copy_(together(labels)[0])
        else:
            torch.manual_seed(seed)
            module.reset_parameters()
        module.settle(seed)
        _, left = module.cut(module.state_dict(), options)
        size = count_choice(AttentionChoice.of(scheme, **left), shape)
        assert size.parameters >= smallest.parameters
        assert size.effective >= smallest.effective


def test_what_was_left_is_named_where_something_could_go() -> None:
    threshold = AttentionChoice.of("grouped_head", keep="threshold")
    shared = AttentionChoice.of("collaborative", shared_dim=16)
    light = AttentionChoice.of("collaborative", shared_dim=16, dim_threshold=0.3)
    fixed = AttentionChoice.of("grouped_head", kept_heads=5)
    plan = AttentionPlan.of(
        {"encoder_self": threshold, "decoder_self": [light, fixed], "encoder_decoder": shared}
    )
    pruned = AttentionPlan.of(
        {
            "encoder_self": [AttentionChoice.of("grouped_head", kept_heads=n) for n in (4, 3)],
            "decoder_self": [AttentionChoice.of("collaborative", shared_dim=11), fixed],
            "encoder_decoder": shared,
        }
    )
    text = "encoder_self 4+3 heads, decoder_self.0 11 shared dimensions"
    assert left_text(plan, pruned) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, "num_groups must be between 1 and 8, but is 0"),
        ({"num_groups": 9}, "num_groups must be between 1 and 8, but is 9"),
        ({"kept_heads": 0}, "kept_heads must be between 1 and 8, but is 0"),
        ({"vote_threshold": 1.5}, "vote_threshold must be between 0 and 1, but is 1.5"),
        ({"centre_shift": 0.0}, "centre_shift must be above 0, but is 0.0"),
        ({"keep": "best"}, "keep must be all or most_votes or pillars or threshold or random"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build_attention("grouped_head", 16, 8, **options)


def test_phases_come_in_order() -> None:
    assert list(Phase) == [Phase.TRAINING, Phase.READY, Phase.VOTING, Phase.SETTLED]
    assert Phase.TRAINING < Phase.READY < Phase.VOTING < Phase.SETTLED
