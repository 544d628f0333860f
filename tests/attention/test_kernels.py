"""torch's kernels: which are not taken, groups that they read, and FlexAttention."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask

from nas_attn.attention import fused
from nas_attn.attention.call import AttentionCall
from nas_attn.attention.flex import _causal_blocks, _compiled, _earlier, flex_refusal
from nas_attn.attention.functional import attend
from tests.helpers.devices import needs_cuda


def drawn(*shapes: tuple[int, ...], **how: object) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(**how) for shape in shapes]


def test_cudnn_is_not_given_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, here on a CPU; and what was on before is on again."""
    seen: list[bool] = []
    true_attention = F.scaled_dot_product_attention

    def watched(*args: object, **kwargs: object) -> Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return true_attention(*args, **kwargs)

    monkeypatch.setattr(fused, "CUDNN_DEVICES", ("cpu",))
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    queries, keys, values = drawn((2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    for implementation in ("fused", "rows"):
        attend(queries, keys, values, scale=1.0, mask=mask, implementation=implementation)
        attend(queries, keys, values, scale=1.0, implementation=implementation)
    assert seen == [False, True, False, True]
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attend(queries, keys, values, scale=1.0, mask=mask, implementation="fused")
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("on", [True, False])
def test_threads_do_not_turn_cudnn_on_for_each_other(on: bool) -> None:
    """The one that came first may leave first, or last."""
    try:
        torch.backends.cuda.enable_cudnn_sdp(on)
        for last in (0, 1):
            entered = [fused._CudnnOff(), fused._CudnnOff()]
            for one in entered:
                one.__enter__()
            entered.pop(1 - last).__exit__(None, None, None)
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            entered.pop().__exit__(None, None, None)
            assert torch.backends.cuda.cudnn_sdp_enabled() == on
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_compilers_leave_off_what_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CUDNN_DEVICES", ("cpu",))
    tensors = drawn((2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    switched: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        for node in graph.graph.nodes:
            if node.target is torch.nn.attention._sdpa_kernel:
                switched.append({by_name.args[0] for by_name in node.args[0]})
        return graph

    torch.compiler.reset()
    call = torch.compile(
        lambda: attend(*tensors, scale=1.0, mask=mask, implementation="fused")[0],
        backend=backend,
        fullgraph=True,
    )
    try:
        torch.backends.cuda.enable_flash_sdp(False)
        call()
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    within, after = switched
    assert within == {"EFFICIENT_ATTENTION", "MATH"}
    assert "FLASH_ATTENTION" not in after
    assert "CUDNN_ATTENTION" in after


def test_compilers_follow_what_keeps_masks_from_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CUDNN_DEVICES", ("cpu",))
    queries, keys, values = drawn((2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1] = False

    def call(implementation: str) -> Tensor:
        output, _ = attend(
            queries, keys, values, scale=1.0, mask=mask, implementation=implementation
        )
        return output

    for implementation in ("fused", "rows"):
        torch.compiler.reset()
        compiled = torch.compile(call, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(implementation), call(implementation))


@needs_cuda
def test_gradients_where_those_of_cudnn_are_not_numbers() -> None:
    """pytorch/pytorch issue 196678: a mask, 64 more than a multiple of 128, low scores."""
    length, width = 704, 64
    queries, keys, values = drawn(*[(1, 1, length, width)] * 3, device="cuda", dtype=torch.bfloat16)
    queries, keys = queries * 0.1, keys * 0.1
    queries[..., 0], keys[..., 0] = 1.0, -120 * width**0.5
    inputs = [tensor.requires_grad_() for tensor in (queries, keys, values)]
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()[None, None]
    output, _ = attend(*inputs, scale=width**-0.5, mask=mask)
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
    assert all(gradient.isfinite().all() for gradient in gradients)


@needs_cuda
@pytest.mark.parametrize(
    ("dtype", "masked", "expected"),
    [(torch.bfloat16, False, 1), (torch.float16, False, 1), (torch.float32, False, None)],
)
def test_groups_are_handed_over_where_a_fused_kernel_reads_them(
    dtype: torch.dtype, masked: bool, expected: int | None
) -> None:
    """Whatever a version of torch reads, it never falls back to all scores at once."""
    tensors = drawn((2, 8, 64, 64), (2, 2, 64, 64), (2, 2, 64, 64), device="cuda", dtype=dtype)
    call = AttentionCall(scale=0.125)
    reads = fused._reads_groups(*tensors, call)
    assert reads or expected is None
    num_heads = 2 if reads else 8
    heads = [fused._expand_heads(tensor, num_heads) for tensor in tensors[1:]]
    choice = torch._fused_sdp_choice(tensors[0], *heads, scale=0.125, enable_gqa=reads)
    assert choice != fused.MATH


def test_math_is_torchs_number() -> None:
    assert torch.nn.attention.SDPBackend.MATH.value == fused.MATH
    wide = drawn((1, 2, 3, 8), (1, 2, 3, 8), (1, 2, 3, 4))
    assert torch._fused_sdp_choice(*wide) == fused.MATH


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's compiler uses what it deprecates
@pytest.mark.parametrize("causal", [False, True])
def test_flex_on_a_cpu(causal: bool) -> None:
    """Forward only; one kernel for lengths within a block, of whole blocks and of others."""
    for length in (300, 100, 256):
        shapes = (2, 4, length, 32), (2, 1, length, 32), (2, 4, length, 16)
        tensors = drawn(*shapes)
        how = {"scale": 0.3, "is_causal": causal}
        exact, _ = attend(*(t.double() for t in tensors), **how, implementation="explicit")
        found, _ = attend(*tensors, **how, implementation="flex")
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def test_kinds_of_calls_do_not_use_up_each_others_compilations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One compilation each, for whatever length; another would be refused here."""
    torch.compiler.reset()
    _compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width, causal in ((32, False), (48, False), (32, True), (48, True)):
            for length in (9, 12):
                shapes = (2, 4, length, width), (2, 1, length, width), (2, 4, length, 16)
                tensors = drawn(*shapes)
                how = {"scale": 0.3, "is_causal": causal}
                found, _ = attend(*tensors, **how, implementation="flex")
                exact, _ = attend(*tensors, **how, implementation="explicit")
                torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    _compiled.cache_clear()


@pytest.mark.parametrize("length", [300, 256, 100])
def test_causal_blocks_hide_what_a_mask_would(length: int) -> None:
    """Compared with torch's own, which looks at every pair; also when made for inference first."""
    with torch.inference_mode():
        made = _causal_blocks(length, torch.device("cpu"))
    assert not made.kv_indices.is_inference()
    expected = create_block_mask(_earlier, None, None, length, length, device="cpu")
    assert torch.equal(made.to_dense(), expected.to_dense())
    assert made.sparsity() == expected.sparsity()
    for mine, torchs in (
        (made.kv_num_blocks, expected.kv_num_blocks),
        (made.full_kv_num_blocks, expected.full_kv_num_blocks),
        (made.q_num_blocks, expected.q_num_blocks),
        (made.full_q_num_blocks, expected.full_q_num_blocks),
    ):
        assert torch.equal(mine, torchs)


def test_what_flex_refuses() -> None:
    tensors = drawn((2, 4, 9, 32), (2, 1, 9, 32), (2, 4, 9, 16))
    mask = torch.zeros(1, 1, 1, 9, requires_grad=True)
    for how, message in (
        ({"dropout": 0.5}, "drops no weights"),
        ({"need_weights": True}, "returns no weights"),
        ({"mask": mask}, "does not differentiate masks"),
        ({"mask": mask.detach()}, "takes no masks on a CPU"),
    ):
        with pytest.raises(ValueError, match=f"the attention implementation flex {message}"):
            attend(*tensors, scale=1.0, implementation="flex", **how)
    call = AttentionCall(scale=1.0)
    learned = [tensor.clone().requires_grad_() for tensor in tensors]
    assert flex_refusal(*learned, call) == "has no gradients on a CPU"
    with torch.no_grad():
        assert flex_refusal(*learned, call) == ""
    assert "float32" in flex_refusal(*(t.double() for t in tensors), call)
    assert "16 at least" in flex_refusal(*(t[..., :8] for t in tensors), call)
    with pytest.raises(ValueError, match="flex needs values of another width than keys"):
        attend(tensors[0], tensors[1], tensors[1], scale=1.0, implementation="flex")
    refused = torch.func.vmap(
        lambda one: torch.tensor(len(flex_refusal(one, *tensors[1:], call)) > 0)
    )
    assert refused(tensors[0][None]).all()
