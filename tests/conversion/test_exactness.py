"""What has room for all that the source computes holds it, for pairs of schemes of all widths."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, build_attention
from nas_attn.conversion import RecordedCall, convert_attention, schemes
from nas_attn.conversion.exact import common_eigenvectors, known_factors
from nas_attn.conversion.factors import collaborative_factors
from nas_attn.conversion.maps import maps_of
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice
from tests.helpers.attention import distance

of = AttentionChoice.of

EXACT = 1e-9
"""Largest difference of outputs, in double precision."""
SHAPES = [
    pytest.param(12, 3, 12, 12, id="as-wide"),
    pytest.param(12, 2, 9, 9, id="narrow-keys"),
    pytest.param(8, 2, 3, 3, id="keys-below-a-head"),
    pytest.param(6, 6, 7, 2, id="heads-of-one"),
]
"""Widths of the model, heads, widths of keys and values."""

LONG = [pytest.mark.slow, pytest.mark.long]


def choices(width: int, heads: int) -> list[AttentionChoice]:
    """Of all schemes, narrow and wide."""
    head = width // heads
    return [
        of("multi_head"),
        of("multi_query"),
        of("grouped_query", num_groups=heads // 2 if heads % 2 == 0 else 1),
        of("grouped_query", num_groups=1, num_value_groups=heads),
        of("grouped_query", num_groups=1, tied=True),
        of("none", output_bias=True),
        of("grouped_head", kept_heads=2),
        of("reduced_key", key_dim=heads),
        of("reduced_key", key_dim=2 * width),
        of("shared_key_value"),
        of("head_embedding_mul"),
        of("head_embedding_add"),
        of("single_head"),
        of("single_head", narrow_output=True),
        of("collaborative", shared_dim=max(1, head - 1), content_bias=True),
        of("collaborative", shared_dim=head, num_value_heads=1),
        of("collaborative", shared_dim=head + 2),
        of("collaborative", shared_dim=width + heads),
        of("collaborative", shared_dim=2 * width, content_bias=True),
        of("latent", latent_dim=head),
        of("latent", latent_dim=2 * head + 1),
    ]


def is_tied(choice: AttentionChoice) -> bool:
    return choice.scheme == "shared_key_value" or ("tied", True) in choice.options


def build(
    choice: AttentionChoice, width: int, heads: int, kdim: int, vdim: int, seed: int = 0
) -> Attention:
    """A module far from its start, biases and embeddings too."""
    torch.manual_seed(seed)
    module = build_attention(
        choice.scheme, width, heads, kdim=kdim, vdim=vdim, **dict(choice.options)
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def make_call(module: Attention, batch: int = 3, seed: int = 5) -> RecordedCall:
    generator = torch.Generator().manual_seed(seed)

    def some(width: int, time: int) -> Tensor:
        return torch.randn(batch, time, width, generator=generator, dtype=torch.float64) + 0.3

    key = some(module.kdim, 9)
    value = key if module.kdim == module.vdim else some(module.vdim, 9)
    padding = torch.zeros(batch, 9, dtype=torch.bool)
    padding[0, 6:] = True
    return RecordedCall(some(module.embed_dim, 7), key, value, key_padding_mask=padding)


def rank_of(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-9 * values.max().clamp_min(1e-300)).sum())


def terms_of(source: Attention, choice: AttentionChoice) -> int | None:
    """Shared dimensions that a source's scores are known to need at most; None if of no use."""
    options = dict(choice.options)
    if choice.scheme == "collaborative":
        more = source.num_heads if options.get("content_bias") else 0
        return int(options["shared_dim"]) + more
    if choice.scheme in ("head_embedding_mul", "single_head"):
        return source.head_dim
    if choice.scheme == "head_embedding_add":
        return 2 * source.head_dim
    return None


def has_room(source: Attention, known: int | None, target: Attention) -> bool:
    """Whether a scheme can hold what a source computes, by ranks of the maps written out.

    Args:
        source: trained.
        known: shared dimensions that it is known to need at most (see `terms_of`).
        target: of any weights.
    """
    maps = maps_of(source)
    own = maps.num_heads
    scores = maps.query.mT @ maps.key  # (n, d + 1, kdim)
    outputs = maps.output @ maps.value  # (n, d, vdim)
    kind = type(target).__name__.removesuffix("Attention")
    heads = target.embed_dim // target.head_dim

    def fit(stacks: Tensor, groups: int, width: int) -> bool:
        return all(rank_of(rows.flatten(0, 1)) <= width for rows in stacks.chunk(groups))

    def padded(several: Tensor) -> Tensor:
        return torch.cat([several, several.new_zeros(heads - own, *several.shape[1:])])

    def one_form(several: Tensor) -> bool:
        return all(torch.allclose(s, several[0], atol=1e-12) for s in several)

    head = target.head_dim
    if kind == "No":
        return not outputs.any()
    if getattr(target, "tied", False):
        both = torch.cat([padded(scores), padded(outputs)], dim=1)
        return fit(both, target.num_groups, head)
    if kind in ("MultiHead", "GroupedQuery", "MultiQuery"):
        keys, values = target.num_groups, target.num_value_groups
        return fit(padded(scores), keys, head) and fit(padded(outputs), values, head)
    if kind == "GroupedHead":
        return own <= target.num_heads and fit(scores, own, head)
    if kind == "ReducedKey":
        return fit(scores, own, target.key_dim // heads)
    if kind == "Latent":
        is_low = rank_of(torch.cat([scores, outputs], dim=1).flatten(0, 1)) <= target.latent_dim
        return is_low and fit(scores, own, head)
    if kind == "SingleHead":
        return one_form(scores) and rank_of(scores[0]) <= head and rank_of(outputs.sum(0)) <= head
    values = target.num_value_heads if kind == "Collaborative" else 1
    if not fit(padded(outputs), values, head):
        return False
    if kind == "HeadEmbeddingAdd":
        linear = one_form(scores[:, :-1]) and rank_of(scores[0, :-1]) <= head
        return linear and rank_of(scores.flatten(0, 1)) <= head
    if kind == "Collaborative" and target.content_bias is not None:
        scores = scores[:, :-1]
        if type(source).__name__ == "HeadEmbeddingAddAttention":
            known = source.head_dim
        elif getattr(source, "content_bias", None) is not None:
            known = source.shared_dim
    dims = target.shared_dim if kind == "Collaborative" else head
    total = sum(rank_of(score) for score in scores)
    return min(total, total if known is None else known) <= dims


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=LONG)])
@pytest.mark.parametrize(("width", "heads", "kdim", "vdim"), SHAPES)
def test_no_pair_fails_and_what_has_room_is_exact(
    width: int, heads: int, kdim: int, vdim: int, every: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair of choices at one of the shapes, in turns; or at all of them."""
    turn = [shape.values for shape in SHAPES].index((width, heads, kdim, vdim))
    # What is exact needs no search, and what is not need not be searched for long.
    few = functools.partial(collaborative_factors, sweeps=2)
    monkeypatch.setattr(schemes, "collaborative_factors", few)
    exact, wrong = 0, []
    for row, choice in enumerate(choices(width, heads)):
        try:
            source = build(choice, width, heads, kdim, vdim)
        except PlanError:  # shared keys and values of two widths
            assert is_tied(choice) or choice.scheme == "latent"
            continue
        call = make_call(source)
        for column, wanted in enumerate(choices(width, heads)):
            if not every and (row + column) % len(SHAPES) != turn:
                continue
            if (is_tied(wanted) or wanted.scheme == "latent") and kdim != vdim:
                continue
            target = convert_attention(source, wanted, force=True).module
            found = distance(source, target, call)
            assert found < float("inf")
            room = wanted == choice or has_room(source, terms_of(source, choice), target)
            exact += room
            if room and found > EXACT:
                wrong.append(f"{choice} to {wanted}: {found:.1e}")
    assert exact > len(choices(width, heads)) // (1 if every else len(SHAPES))
    assert not wrong, "\n".join(wrong)


CHAINS = [
    of("collaborative", shared_dim=6),
    of("collaborative", shared_dim=4, num_value_heads=2),
    of("collaborative", shared_dim=5, content_bias=True),
    of("head_embedding_mul"),
    of("single_head", narrow_output=True),
    of("reduced_key", key_dim=12),
    of("grouped_query", num_groups=2),
    of("grouped_query", num_groups=4, num_value_groups=2),
    of("grouped_query", num_groups=2, tied=True),
    of("shared_key_value"),
    of("head_embedding_add"),
    of("none", output_bias=True),
    of("latent", latent_dim=5),
    of("latent", latent_dim=15),
]
"""With a score map of no more than a head's width, 6."""


@pytest.mark.parametrize("with_calls", [False, True], ids=["weights", "data"])
@pytest.mark.parametrize("choice", CHAINS, ids=str)
def test_through_multi_head_and_back_is_exact(choice: AttentionChoice, with_calls: bool) -> None:
    source = build(choice, 24, 4, 24, 24)
    calls = [make_call(source, batch=20)] if with_calls else []
    wide = convert_attention(source, of("multi_head"), calls).module
    assert distance(source, wide, make_call(source)) < EXACT
    back = convert_attention(wide, choice, calls, force=True).module
    assert distance(source, back, make_call(source)) < EXACT
    # Weights that were stored in single precision meanwhile: as near as those can be.
    stored = convert_attention(wide.float(), choice, calls, force=True).module.double()
    assert distance(source, stored, make_call(source)) < 1e-4


def test_heads_that_share_dimensions_in_part_are_taken_apart() -> None:
    """Some dimensions are one head's, some of two heads in proportion, some of all."""
    source = build(of("collaborative", shared_dim=9), 24, 4, 24, 24)
    with torch.no_grad():
        source.mixing[1:, :2] = 0.0
        source.mixing[2:, 2:5] = 0.0
        source.mixing[1, 2:4] = 3.0 * source.mixing[0, 2:4]
        source.mixing[:2, 7:] = 0.0
    wide = convert_attention(source, of("reduced_key", key_dim=36)).module
    back = convert_attention(wide, of("collaborative", shared_dim=9)).module
    assert distance(source, back, make_call(source)) < EXACT


def test_known_factors_are_the_largest_where_there_are_more() -> None:
    source = build(of("collaborative", shared_dim=9), 24, 4, 24, 24)
    with torch.no_grad():
        source.mixing[:, 5:] *= 1e-3
    maps = maps_of(source)
    whole = maps.query.mT @ maps.key
    for dims, most in ((9, 1e-12), (12, 1e-12), (5, 1e-2)):
        found = known_factors(maps.query, maps.key, dims)
        assert found is not None
        query, key, mixing = found
        assert query.shape == (dims, 25)
        made = (query.t() * mixing[:, None]) @ key
        assert float((made - whole).norm() / whole.norm()) < most
    assert known_factors(whole, whole, 9) is None, "no two heads share a key"


def test_maps_without_a_common_structure_have_no_common_eigenvectors() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 3, 4, 10).double()
    assert common_eigenvectors(left, right, 9) is None


def test_unequal_inputs_that_never_vary_are_no_reason_to_fail() -> None:
    """All keys of a sequence alike: attention is their mean, whatever the scores."""
    source = build(of("multi_head"), 24, 4, 24, 24)
    call = make_call(source)
    same = RecordedCall(
        call.query, call.key[:, :1].expand(-1, 9, -1), call.value[:, :1].expand(-1, 9, -1)
    )
    found = convert_attention(source, of("multi_query"), [same]).module
    assert distance(source, found, same) < 1.0


@pytest.mark.parametrize("name", ["q_proj.weight", "out_proj.bias"])
def test_weights_that_are_no_numbers_are_named(name: str) -> None:
    source = build(of("multi_head"), 24, 4, 24, 24)
    with torch.no_grad():
        source.get_parameter(name).view(-1)[3] = float("nan")
    with pytest.raises(PlanError, match=f"1 of the .* weights {name} are infinite or not a number"):
        convert_attention(source, of("multi_query"))
