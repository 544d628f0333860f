"""Converted modules: exact where they can be, the least error where they cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nas_attn.attention import Attention, build_attention
from nas_attn.attention.grouped_query import GroupedQueryAttention
from nas_attn.conversion import RecordedCall, convert_attention, recorded
from nas_attn.conversion.factors import collaborative_factors, shared_rows
from nas_attn.conversion.latents import Weighed, shared_latent
from nas_attn.conversion.maps import maps_of
from nas_attn.conversion.metric import InputStatistics
from nas_attn.conversion.pooling import aligned
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice

WIDTH, HEADS = 32, 4
of = AttentionChoice.of

EXACT = [
    of("multi_head"),
    of("grouped_head"),
    of("grouped_query", num_groups=HEADS),
    of("reduced_key", key_dim=WIDTH),
    of("collaborative", shared_dim=WIDTH),
    of("collaborative", shared_dim=WIDTH + 5),
    of("collaborative", shared_dim=WIDTH, content_bias=True),
    of("collaborative", shared_dim=WIDTH, mixing_init="heads"),
    of("latent", latent_dim=WIDTH),
]
FITS = [c for c in EXACT if dict(c.options).get("shared_dim", 0) <= WIDTH]
"""No head of theirs is wider than one of multi-head attention."""
NEAR = [
    of("collaborative", shared_dim=12),
    of("collaborative", shared_dim=12, content_bias=True),
    of("collaborative", shared_dim=16, num_value_heads=2),
    of("grouped_query", num_groups=2),
    of("grouped_query", num_groups=1, num_value_groups=2),
    of("grouped_query", num_groups=2, tied=True),
    of("multi_query"),
    of("reduced_key", key_dim=12),
    of("shared_key_value"),
    of("latent", latent_dim=12),
    of("grouped_head", kept_heads=2),
    of("head_embedding_mul"),
    of("head_embedding_mul", plain_embedding=True),
    of("single_head"),
    of("single_head", narrow_output=True),
]


def trained(
    scheme: str = "multi_head", kdim: int = WIDTH, seed: int = 0, **more: object
) -> Attention:
    """A module whose weights are as large as those of trained ones, biases too."""
    torch.manual_seed(seed)
    module = build_attention(scheme, WIDTH, HEADS, kdim=kdim, vdim=kdim, **more)  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.25)
    return module.double().eval()


def make_call(kdim: int = WIDTH, seed: int = 1, batch: int = 24) -> RecordedCall:
    """Inputs that use few directions, around a mean; some keys are padding."""
    generator = torch.Generator().manual_seed(7)
    loud = torch.linspace(2.0, 0.05, 40, dtype=torch.float64)
    turns = [torch.randn(40, width, generator=generator).double() / 6 for width in (WIDTH, kdim)]
    generator.manual_seed(seed)
    query, key = (
        (torch.randn(batch, 12, 40, generator=generator).double() * loud) @ turn + 0.4
        for turn in turns
    )
    padding = torch.zeros(batch, 12, dtype=torch.bool)
    padding[::3, 8:] = True
    return RecordedCall(query, key, key, key_padding_mask=padding)


def output(module: Attention, call: RecordedCall) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(
            call.query, call.key, call.value, call.key_padding_mask, need_weights=False
        )[0]
    return out


def distance(module: Attention, reference: Attention, call: RecordedCall) -> float:
    wanted = output(reference, call)
    return float((output(module, call) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("calls", [[], [make_call()]], ids=["weights", "data"])
@pytest.mark.parametrize("choice", EXACT, ids=str)
def test_what_holds_all_heads_is_exact(choice: AttentionChoice, calls: list[RecordedCall]) -> None:
    reference = trained()
    converted = convert_attention(reference, choice, calls).module
    assert distance(converted, reference, make_call(seed=2)) < 1e-10


@pytest.mark.parametrize("kdim", [WIDTH, 24])
@pytest.mark.parametrize("choice", EXACT, ids=str)
def test_it_is_exact_across_widths(choice: AttentionChoice, kdim: int) -> None:
    reference = trained(kdim=kdim)
    converted = convert_attention(reference, choice).module
    assert distance(converted, reference, make_call(kdim, seed=2)) < 1e-10


@pytest.mark.parametrize("choice", [*FITS, *NEAR, of("head_embedding_add")], ids=str)
def test_every_scheme_of_narrow_heads_goes_back_to_multi_head(choice: AttentionChoice) -> None:
    """But for collaborative, whose heads may compare in more dimensions than one head has."""
    options = dict(choice.options)
    reference = trained(choice.scheme, **options)
    if choice.scheme == "collaborative":
        with torch.no_grad():  # as a converted one is: each shared dimension is one head's
            owner = torch.arange(reference.mixing.size(1)) % HEADS
            reference.mixing.mul_(torch.nn.functional.one_hot(owner, HEADS).t())
        if options.get("content_bias"):
            nn.init.zeros_(reference.content_bias.weight)
    back = convert_attention(reference, of("multi_head")).module
    assert distance(back, reference, make_call(seed=2)) < 1e-10


@pytest.mark.parametrize("choice", NEAR, ids=str)
def test_what_data_say_helps_on_other_data(choice: AttentionChoice) -> None:
    reference = trained()
    blind = convert_attention(reference, choice).module
    calls = [make_call(), make_call(seed=4, batch=48)]
    seeing = convert_attention(reference, choice, calls, refit=False)
    refitted = convert_attention(reference, choice, calls)
    unseen = make_call(seed=3)
    errors = [distance(m, reference, unseen) for m in (blind, seeing.module, refitted.module)]
    assert errors[2] <= errors[1] < errors[0], errors
    assert refitted.errors is not None
    assert refitted.errors.outputs == pytest.approx(
        distance(refitted.module, reference, unseen), rel=0.3
    )


def test_errors_of_an_exact_conversion_are_none() -> None:
    found = convert_attention(trained(), of("collaborative", shared_dim=WIDTH), [make_call()])
    assert found.errors is not None
    assert found.errors.scores is not None
    assert found.errors.scores < 1e-12
    assert found.errors.outputs < 1e-12


def test_added_embeddings_cannot_inherit() -> None:
    with pytest.raises(PlanError, match="cannot inherit"):
        convert_attention(trained(), of("head_embedding_add"))
    forced = convert_attention(trained(), of("head_embedding_add"), [make_call()], force=True)
    assert distance(forced.module, trained(), make_call(seed=2)) < 1.0
    same = trained("head_embedding_add")
    again = convert_attention(same, of("head_embedding_add"))
    assert isinstance(again.module, type(same))


def test_means_are_worse_and_exact_where_nothing_is_shared() -> None:
    module, calls = trained(), [make_call()]
    shared = of("grouped_query", num_groups=2)
    best = convert_attention(module, shared, calls, refit=False).errors
    pooled = convert_attention(module, shared, calls, pooling="means")
    assert best is not None
    assert pooled.errors is not None
    assert pooled.errors.outputs > 1.2 * best.outputs
    weight = module.k_proj.weight.detach().unflatten(0, (2, 2, -1)).mean(1).flatten(0, 1)
    assert torch.equal(pooled.module.k_proj.weight, weight)
    alone = convert_attention(module, of("grouped_query", num_groups=HEADS), calls, pooling="means")
    assert alone.errors is not None
    assert alone.errors.outputs < 1e-12
    with pytest.raises(PlanError, match="means are taken of multi-head attention"):
        convert_attention(module, of("single_head"), calls, pooling="means")


@pytest.mark.parametrize("kdim", [WIDTH, 20])
def test_aligned_heads_compute_the_same(kdim: int) -> None:
    module, call = trained(kdim=kdim), make_call(kdim)
    assert isinstance(module, GroupedQueryAttention)
    turned = aligned(module, 2, InputStatistics.of_calls(module, [call]))
    assert not torch.equal(turned.k_proj.weight, module.k_proj.weight)
    assert distance(turned, module, call) < 1e-12


def test_aligned_means_find_heads_that_differ_by_a_turn_alone() -> None:
    """Keys and values of the heads of a group are the same but for their bases."""
    module = trained("grouped_query", num_groups=2)
    turned, width = trained(), WIDTH // HEADS
    weights = module.state_dict()
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        groups = weights[name].unflatten(0, (2, width))
        weights[name] = groups.repeat_interleave(HEADS // 2, dim=0).flatten(0, 1)
    turned.load_state_dict(weights)
    with torch.no_grad():
        for head in range(HEADS):
            rows = slice(head * width, (head + 1) * width)
            turn, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
            for projection in (turned.k_proj, turned.q_proj):
                projection.weight[rows] = turn @ projection.weight[rows]
                projection.bias[rows] = turn @ projection.bias[rows]
            turn, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
            turned.v_proj.weight[rows] = turn @ turned.v_proj.weight[rows]
            turned.v_proj.bias[rows] = turn @ turned.v_proj.bias[rows]
            turned.out_proj.weight[:, rows] = turned.out_proj.weight[:, rows] @ turn.t()
    shared = of("grouped_query", num_groups=2)
    plain, near = (
        convert_attention(turned, shared, pooling=pooling).module
        for pooling in ("means", "aligned_means")
    )
    assert distance(plain, module, make_call()) > 0.1
    assert distance(near, module, make_call()) < 1e-6


def test_aligned_means_are_better_than_means_and_worse_than_ours() -> None:
    module, calls, shared = trained(), [make_call()], of("grouped_query", num_groups=2)
    errors = [
        convert_attention(module, shared, calls, refit=False, pooling=pooling).errors
        for pooling in ("means", "aligned_means", None)
    ]
    plain, near, ours = (error.outputs for error in errors if error is not None)
    assert plain > near > ours


def test_type_and_mode_are_those_of_the_trained_module() -> None:
    reference = trained().float().train()
    converted = convert_attention(reference, of("multi_query"), [make_call()]).module
    assert converted.training
    assert next(converted.parameters()).dtype == torch.float32
    assert not any(p.grad_fn for p in converted.parameters())
    assert all(p.requires_grad for p in converted.parameters())


def test_shared_rows_are_the_optimum() -> None:
    """No gradient leads away from them, and by brute force: a full decomposition of the stack."""
    torch.manual_seed(0)
    left, right = torch.randn(3, 4, 10).double(), torch.randn(3, 4, 9).double()
    stack = (left.mT @ right).flatten(0, 1)
    rows = shared_rows(5, (left, right))
    error = (stack - stack @ rows.t() @ rows).norm()
    left_over = torch.linalg.svdvals(stack)[5:].norm()
    assert error == pytest.approx(float(left_over), rel=1e-10)
    assert shared_rows(20, (left, right)).shape == (20, 9)


def test_a_shared_latent_is_a_fixed_point_below_where_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the errors of scores and outputs, each in a metric of its own, written out naively."""
    torch.manual_seed(0)
    left, right = torch.randn(2, 3, 4, 10).double(), torch.randn(2, 3, 4, 9).double()
    roots = torch.randn(2, 9, 9).double().tril() + 3.0 * torch.eye(9)
    kinds = [Weighed.of(*of_kind) for of_kind in zip(left, right, roots, strict=True)]

    def lost(rows: Tensor) -> Tensor:
        total = torch.zeros(()).double()
        for kind in kinds:
            wanted = kind.maps @ kind.root
            basis = torch.linalg.qr((rows @ kind.root).t()).Q
            total = total + (wanted - wanted @ basis @ basis.t()).square().sum()
        return total

    found = []
    for sweeps in (0, 20, 2000):
        monkeypatch.setattr("nas_attn.conversion.latents.SWEEPS", sweeps)
        found.append(shared_latent(5, *kinds))
    first, usual, best = (float(lost(rows)) for rows in found)
    assert best <= usual < first
    assert usual == pytest.approx(best, rel=0.02)
    rows = found[-1].requires_grad_()
    (slope,) = torch.autograd.grad(lost(rows), rows)
    assert float(slope.norm()) < 1e-4
    exact = shared_latent(9, *kinds)
    assert float(lost(exact)) < 1e-20


@pytest.mark.parametrize("shared_dim", [3, 8, 11])
def test_collaborative_factors_are_a_fixed_point(shared_dim: int) -> None:
    """Nothing is gained by moving along the gradient of the error, written out naively."""
    torch.manual_seed(0)
    left, right = torch.randn(3, 4, 10).double(), torch.randn(3, 4, 9).double()
    maps = left.mT @ right
    found = collaborative_factors(left, right, shared_dim, sweeps=3000, tolerance=1e-15)
    factors = [t.clone().requires_grad_() for t in (found.query, found.key, found.mixing)]
    query, key, mixing = factors
    error = ((maps - (query.t() * mixing[:, None]) @ key) ** 2).sum()
    assert float(error.detach().sqrt() / maps.norm()) == pytest.approx(float(found.error), rel=1e-6)
    slopes = torch.autograd.grad(error, factors)
    assert max(float(slope.norm()) for slope in slopes) < 5e-3 * float(maps.norm())


def test_collaborative_factors_improve_on_their_start_and_go_in_batches() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 3, 4, 10).double(), torch.randn(2, 3, 4, 9).double()
    both = collaborative_factors(left, right, 6)
    start = collaborative_factors(left, right, 6, sweeps=0)
    assert (both.error < start.error).all()
    for layer in range(2):
        alone = collaborative_factors(left[layer], right[layer], 6, sweeps=both.sweeps, tolerance=0)
        assert float(both.error[layer]) == pytest.approx(float(alone.error), rel=1e-9)


def test_maps_tell_what_a_module_computes() -> None:
    """For every scheme: scores up to what the softmax cancels, and outputs."""
    for choice in (*EXACT, *NEAR, of("head_embedding_add")):
        module = trained(choice.scheme, **dict(choice.options))
        maps = maps_of(module)
        call = make_call(batch=2)
        ones = torch.cat([call.query, torch.ones(2, 12, 1).double()], dim=-1)
        scores = torch.einsum("btd,nrd,nrk,bsk->bnts", ones, maps.query, maps.key, call.key)
        padding = call.key_padding_mask
        assert padding is not None
        scores = (module.scale * scores).masked_fill(padding[:, None, None], float("-inf"))
        averages = scores.softmax(-1) @ call.value[:, None]
        out = torch.einsum("bnts,nhs,ndh->btd", averages, maps.value, maps.output) + maps.bias
        assert torch.allclose(out, output(module, call), atol=1e-10), choice


def test_no_attention_inherits_the_mean_output() -> None:
    reference, call = trained(), make_call()
    seen = output(reference, call)
    for choice, calls, expected in (
        (of("none", output_bias=True), [call], seen.mean((0, 1))),
        (of("none", output_bias=True), [], maps_of(reference).bias),
        (of("none"), [call], torch.zeros(WIDTH).double()),
    ):
        found = convert_attention(reference, choice, calls)
        assert torch.allclose(output(found.module, make_call(seed=2)), expected, atol=1e-12)
        if calls:
            error = (seen - expected).norm() / seen.norm()
            assert found.errors is not None
            assert found.errors.outputs == pytest.approx(float(error))


def test_calls_are_recorded_as_they_are_made() -> None:
    module, call = trained(), make_call(batch=3)
    with recorded({"it": module}) as calls:
        output(module, call)
        module(call.query, call.query, call.query, is_causal=True)
    output(module, call)
    first, second = calls["it"]
    assert second.value is second.key, "which attention with shared keys and values looks at"
    shared = convert_attention(module, of("shared_key_value"), calls["it"])
    assert shared.errors is not None
    assert first.query is call.query or torch.equal(first.query, call.query)
    assert torch.equal(first.key, call.key)
    assert torch.equal(first.key_padding_mask, call.key_padding_mask)  # type: ignore[arg-type]
    assert second.is_causal
    assert second.key_padding_mask is None


def test_pruned_heads_are_those_that_give_least() -> None:
    reference = trained()
    with torch.no_grad():
        reference.out_proj.weight[:, WIDTH // HEADS : 2 * WIDTH // HEADS] *= 1e-3
        reference.out_proj.weight[:, -WIDTH // HEADS :] *= 1e-3
    for calls in ([], [make_call()]):
        found = convert_attention(reference, of("grouped_head", kept_heads=2), calls)
        assert distance(found.module, reference, make_call(seed=2)) < 1e-2
