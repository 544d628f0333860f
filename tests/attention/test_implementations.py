"""Every implementation of attention against the explicit one, and which is taken when."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nas_attn.attention import Attention, build_attention, functional
from nas_attn.attention.functional import (
    IMPLEMENTATIONS,
    AttentionCall,
    Implementation,
    attend,
    choose_implementation,
)
from nas_attn.attention.masks import causal_mask
from tests.helpers.attention import (
    EMBED_DIM,
    NUM_HEADS,
    Choose,
    every_case,
    inputs,
    make,
    set_thresholds,
)

MASKS = ("none", "padding", "bool", "float", "causal", "causal and padding", "blind row", "heads")


def masked(kind: str, batch: int, time: int) -> dict[str, object]:
    """Arguments of a call; every key may be hidden from a row, or nothing left to it."""
    generator = torch.Generator().manual_seed(3)
    padding = torch.zeros(batch, time, dtype=torch.bool)
    padding[0, time - 2 :] = True
    hidden = torch.rand(time, time, generator=generator) < 0.4
    hidden.fill_diagonal_(False)
    if kind == "padding":
        return {"key_padding_mask": padding}
    if kind == "bool":
        return {"attn_mask": hidden}
    if kind == "float":
        bias = torch.randn(time, time, dtype=torch.double, generator=generator)
        return {"attn_mask": bias.masked_fill(hidden, float("-inf"))}
    if kind == "causal":
        return {"is_causal": True}
    if kind == "causal and padding":
        return {"is_causal": True, "key_padding_mask": padding}
    if kind == "blind row":
        hidden[4] = True
        return {"attn_mask": hidden}
    if kind == "heads":
        own = torch.rand(batch * NUM_HEADS, time, time, generator=generator) < 0.3
        return {"attn_mask": own & ~torch.eye(time, dtype=torch.bool)}
    return {}


def outcome(
    module: Attention, implementation: Implementation | None, x: Tensor, arguments: dict
) -> list[Tensor]:
    """Output, and gradients of the input and of all parameters."""
    module.implementation = implementation
    module.zero_grad()
    x = x.clone().requires_grad_()
    output, _ = module(x, x, x, need_weights=False, **arguments)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    gradients = [t.grad for t in (x, *module.parameters())]
    return [output.detach(), *(g for g in gradients if g is not None)]


@every_case
@pytest.mark.parametrize("kind", MASKS)
def test_all_implementations_agree(
    scheme: str, choose: Choose, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients, float64, to 1e-10, or the implementation says what it does not do."""
    monkeypatch.setattr("nas_attn.attention.blockwise.BLOCK_ROWS", 3)
    set_thresholds(monkeypatch, explicit_max_scores=20)
    if scheme == "single_head" and kind == "heads":
        pytest.skip("it has one map for all heads")
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS))
    x, _ = inputs(2, 8, 8)
    arguments = masked(kind, 2, 8)
    expected = outcome(module, "explicit", x, arguments)
    tried = 0
    for implementation in (None, *IMPLEMENTATIONS):
        try:
            found = outcome(module, implementation, x, arguments)
        except ValueError as refusal:
            assert f"the attention implementation {implementation} " in str(refusal)
            continue
        tried += 1
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    assert tried >= 4  # the chosen one, fused, explicit, blockwise
    if scheme == "head_embedding_add" and kind != "heads":
        assert outcome(module, "shared_scores", x, arguments)


@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [
        ("blockwise", torch.float32, 2e-6),
        ("shared_scores", torch.float32, 2e-6),
        ("shared_scores", torch.bfloat16, 2e-2),
    ],
)
def test_error_of_fast_implementations(
    implementation: Implementation, dtype: torch.dtype, tolerance: float
) -> None:
    """Largest error over the largest output, against float64 from the same rounded weights."""
    torch.manual_seed(4)
    module = build_attention("head_embedding_add", 64, 8).to(dtype).eval()
    x = torch.randn(2, 300, 64).to(dtype)
    exact = build_attention("head_embedding_add", 64, 8).double().eval()
    exact.load_state_dict(module.state_dict())
    exact.implementation, module.implementation = "explicit", implementation
    x64 = x.double()
    expected, _ = exact(x64, x64, x64, need_weights=False, is_causal=True)
    found, _ = module(x, x, x, need_weights=False, is_causal=True)
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance


def test_shared_scores_fall_back_before_they_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a head likes just the keys that all dislike, e^-200 is lost; the guard sees it."""
    torch.manual_seed(5)
    keys = torch.zeros(1, 1, 50, 4)
    keys[0, 0, :, 0] = torch.linspace(-1, 1, 50)
    queries = torch.full((1, 1, 50, 4), 100.0)
    shifts = torch.tensor([[-99.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values = torch.randn(1, 1, 50, 4)
    tensors = (queries, keys, values)
    how = {"scale": 1.0, "shifts": shifts}
    exact = [t.double() for t in tensors]
    expected, _ = attend(*exact, scale=1.0, shifts=shifts.double(), implementation="explicit")
    guarded, _ = attend(*tensors, **how, implementation="shared_scores")
    torch.testing.assert_close(guarded.double(), expected, rtol=0, atol=1e-4)
    monkeypatch.setattr("nas_attn.attention.functional.MAX_KEY_BIAS_SPREAD", 1e9)
    careless, _ = attend(*tensors, **how, implementation="shared_scores")
    assert not torch.allclose(careless.double(), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("scheme", "options", "batch", "time", "expected"),
    [
        ("multi_head", {}, 4, 512, "fused"),
        ("multi_head", {}, 16, 1, "fused"),
        ("grouped_query", {"num_groups": 2}, 4, 512, "fused"),
        ("grouped_query", {"num_groups": 2}, 16, 1, "rows"),
        ("grouped_query", {"num_groups": 1, "num_value_groups": 4}, 16, 1, "rows"),
        ("grouped_query", {"num_groups": 8, "num_value_groups": 1}, 16, 1, "fused"),
        ("grouped_query", {"num_groups": 2, "num_value_groups": 8}, 16, 1, "explicit"),
        ("grouped_query", {"num_groups": 2, "num_value_groups": 4}, 4, 512, "fused"),
        ("multi_query", {}, 4, 512, "rows"),
        ("head_embedding_mul", {}, 4, 512, "rows"),
        ("head_embedding_add", {}, 4, 512, "shared_scores"),
        ("head_embedding_add", {}, 16, 32, "rows"),
        ("head_embedding_add", {}, 16, 1, "rows"),
        ("collaborative", {"shared_dim": 64}, 4, 512, "fused"),
        ("collaborative", {"shared_dim": 128}, 8, 128, "explicit"),
        ("collaborative", {"shared_dim": 128}, 4, 512, "blockwise"),
        ("collaborative", {"shared_dim": 128}, 16, 1, "explicit"),
        ("reduced_key", {}, 4, 512, "blockwise"),
    ],
)
def test_which_implementation_is_chosen(
    scheme: str, options: dict[str, int], batch: int, time: int, expected: Implementation
) -> None:
    """At width 512 with 8 heads on a CPU; a time of 1 is a decoding step after 512 tokens."""
    module = build_attention(scheme, 512, 8, **options)
    query, past = torch.zeros(1, time, 512), torch.zeros(1, 512 if time == 1 else time, 512)
    keys, values = module.keys(past), module.values(past)
    many = [t.expand(batch, -1, -1, -1) for t in (module.queries(query), keys, values)]
    call = AttentionCall(scale=1.0, shifts=module.query_shifts())
    assert choose_implementation(*many, call) == expected
    weights = AttentionCall(scale=1.0, shifts=module.query_shifts(), need_weights=True)
    assert choose_implementation(*many, weights) == "explicit"


@pytest.mark.parametrize("time", [1, 5])
def test_heads_of_keys_and_values_may_be_grouped_apart(time: int) -> None:
    """Six query heads in any groups of keys and of values: as with a key and a value for each."""
    generator = torch.Generator().manual_seed(6)
    padding = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    padding[0, ..., 3:] = False
    for groups in itertools.product((1, 2, 3, 6), repeat=2):
        shapes = ((2, 6, time, 4), *((2, g, 5, 4) for g in groups))
        queries, keys, values = (
            torch.randn(s, dtype=torch.double, generator=generator) for s in shapes
        )
        own = (t.repeat_interleave(6 // t.size(1), dim=1) for t in (keys, values))
        expected, _ = attend(queries, *own, scale=0.5, mask=padding, implementation="explicit")
        for implementation in (None, "fused", "rows", "explicit", "blockwise"):
            how = {"mask": padding, "implementation": implementation}
            found, _ = attend(queries, keys, values, scale=0.5, **how)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_implementation_that_cannot_says_why() -> None:
    tensor = torch.zeros(1, 4, 3, 2)
    for implementation, arguments, reason in (
        ("shared_scores", {}, "needs one query that heads shift"),
        ("blockwise", {"dropout": 0.5}, "drops no weights"),
        ("rows", {"is_causal": True}, "needs a mask that is one for all rows"),
        ("fused", {"need_weights": True}, "returns no weights"),
    ):
        with pytest.raises(
            ValueError, match=f"the attention implementation {implementation} {reason}"
        ):
            attend(tensor, tensor, tensor, scale=1.0, implementation=implementation, **arguments)


def saved_numbers(module: nn.Module, x: Tensor, **arguments: object) -> int:
    """Numbers that the graph keeps for gradients, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x, x, x, need_weights=False, **arguments)
    return sum(kept.values())


@pytest.mark.parametrize("scheme", ["collaborative", "head_embedding_add"])
def test_memory_grows_with_the_length_and_not_its_square(scheme: str) -> None:
    module = build_attention(scheme, 64, 8)
    module.implementation = "blockwise" if scheme == "collaborative" else "shared_scores"
    short, long = (saved_numbers(module, torch.randn(1, t, 64)) for t in (512, 1024))
    assert long < 2.2 * short
    module.implementation = "explicit"
    assert saved_numbers(module, torch.randn(1, 1024, 64)) > 8 * 1024 * 1024


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("scheme", ["collaborative", "head_embedding_add"])
def test_transforms_and_compilers_get_implementations_that_they_can_follow(scheme: str) -> None:
    """Long sequences take fast implementations in eager execution only."""
    torch.manual_seed(6)
    module = build_attention(scheme, 64, 8).eval()
    x = torch.randn(3, 600, 64)
    expected, _ = module(x, x, x, need_weights=False)

    def one(sequence: Tensor) -> Tensor:
        whole = sequence[None]
        arguments = (whole, whole, whole)
        return functional_call(module, {}, arguments, {"need_weights": False})[0][0]

    torch.testing.assert_close(vmap(one)(x), expected, rtol=0, atol=1e-5)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    found, _ = compiled(x, x, x, need_weights=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_causal_mask_hides_later_positions() -> None:
    mask = causal_mask(2, 3, torch.device("cpu"))
    assert mask.tolist() == [[False, True, True], [False, False, True]]


def test_former_names_are_taken() -> None:
    queries, keys, values = torch.randn(3, 1, 4, 3, 2).unbind(0)
    expected, _ = attend(queries, keys, values, scale=1.0, implementation="explicit")
    with pytest.warns(FutureWarning, match="the argument form is called implementation now"):
        found, _ = attend(queries, keys, values, scale=1.0, form="explicit")
    assert torch.equal(found, expected)
    both = {"form": "explicit", "implementation": "fused"}
    with pytest.raises(ValueError, match="form is the former name of implementation"):
        attend(queries, keys, values, scale=1.0, **both)
    module = build_attention("multi_head", 8, 2)
    with pytest.warns(FutureWarning, match="the attribute form is called implementation now"):
        module.form = "explicit"
    assert module.implementation == "explicit"
    with pytest.warns(FutureWarning, match="the attribute form is called"):
        assert module.form == "explicit"
    with pytest.warns(FutureWarning, match=r"functional\.FORMS is called"):
        assert functional.FORMS == IMPLEMENTATIONS
