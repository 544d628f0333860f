"""Autocast and 16 bit: near float32, gradients finite, caches of the same type, votes exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch import Tensor

from fairseq_plugin.adapter import FairseqAttention
from nas_attn.attention import SCHEMES, Attention
from nas_attn.attention.functional import IMPLEMENTATIONS, Implementation
from nas_attn.attention.grouped_head import GroupedHeadAttention
from nas_attn.attention.grouping import constraint_terms, group_heads
from nas_attn.attention.pruning import Phase
from nas_attn.attention.voting import constraints, recording
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.attention import EMBED_DIM, NUM_HEADS, Choose, every_case, inputs, make
from tests.helpers.devices import devices, needs_cuda
from tests.helpers.grouped import GROUPED, LAYERS, Bench, buffers
from tests.helpers.training import Steps

pytestmark = [  # fairseq's training step and its loader of batches warn so
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla:UserWarning"),
]
TYPES = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.06}
"""Of the largest number; what is multiplied has 11 and 8 bits."""


def outcome(module: Attention, query: Tensor, key: Tensor) -> list[Tensor]:
    """Output and gradients, in float32 on the CPU."""
    module.zero_grad()
    padding = torch.zeros(key.shape[:2], dtype=torch.bool, device=key.device)
    padding[1, 5:] = True
    output, _ = module(query, key, key, padding, need_weights=False)
    ramp = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    (output * ramp).sum().backward()
    grads = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(grad is not None for grad in grads)
    return [t.detach().float().cpu() for t in (output, *grads) if t is not None]


@devices
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
@every_case
def test_autocast_in_every_implementation(
    scheme: str,
    choose: Choose,
    implementation: Implementation | None,
    dtype: torch.dtype,
    device: str,
) -> None:
    module = make(scheme, choose(EMBED_DIM, NUM_HEADS)).float().to(device)
    query, key = (tensor.float().to(device) for tensor in inputs(2, 5, 7))
    expected = outcome(module, query, key)
    module.implementation = implementation
    try:
        with torch.autocast(device, dtype):
            found = outcome(module, query, key)
    except ValueError as error:
        assert implementation is not None and f"implementation {implementation}" in str(error)
        return
    for mine, other in zip(found, expected, strict=True):
        assert mine.isfinite().all()
        scale = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(mine, other, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


@devices
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_caches_have_the_type_of_autocast(scheme: str, dtype: torch.dtype, device: str) -> None:
    """Token by token as at once, and keys take no more memory than in 16 bit."""
    attention = FairseqAttention(make(scheme).float(), decoder_self_attention=True).to(device)
    x = inputs(3, 6, 6)[0].transpose(0, 1).float().to(device)  # (time, batch, width)
    future = torch.full((6, 6), float("-inf"), device=device).triu(1)
    state: dict[str, Any] = {}
    with torch.no_grad(), torch.autocast(device, dtype):
        expected, _ = attention(x, x, x, attn_mask=future, need_weights=False)
        steps = [
            attention(token, token, token, incremental_state=state, need_weights=False)[0]
            for token in x.split(1)
        ]
        attention.reorder_incremental_state(state, torch.tensor([2, 0], device=device))
    found = torch.cat(steps)
    assert found.dtype == dtype
    buffer = attention._get_input_buffer(state)
    assert buffer["prev_key"].size(0) == 2
    kept = {tensor.dtype for tensor in buffer.values() if tensor is not None and tensor.numel()}
    assert kept == (set() if scheme == "none" else {dtype})
    scale = float(expected.float().abs().max())
    torch.testing.assert_close(
        found.float(), expected.float(), rtol=0, atol=TOLERANCE[dtype] * scale
    )


@devices
@pytest.mark.parametrize("dtype", TYPES)
def test_the_constraint_is_exact_under_autocast(dtype: torch.dtype, device: str) -> None:
    """Inner products over a batch are larger than any number of float16."""
    generator = torch.Generator().manual_seed(1)
    heads = torch.randn(2, 6, 4000, generator=generator).to(device)
    products = 100 * heads @ heads.transpose(1, 2)
    assert products.max() > torch.finfo(torch.float16).max
    labels = group_heads(products, 2)
    expected = constraint_terms(products, labels)
    with torch.autocast(device, dtype):
        found = constraint_terms(products, labels)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@devices
@pytest.mark.parametrize("dtype", TYPES)
def test_the_shift_of_centres_comes_to_rest_in_16_bit(dtype: torch.dtype, device: str) -> None:
    """A running mean in bfloat16 would stop a tenth above what it tends to."""
    module = make("grouped_head", {"centre_shift": 0.05}).to(device, dtype)
    assert isinstance(module, GroupedHeadAttention)
    again = make("grouped_head", {"centre_shift": 0.05}).to(device, dtype)
    again.load_state_dict(module.state_dict())
    x = inputs(2, 5, 5)[0].to(device, dtype)
    shifts = []
    for _ in range(300):
        with recording([module]), torch.no_grad():
            module(x, x, x, need_weights=False)
        list(constraints([module]))
        shifts.append(float(module.shift))
    assert module.shift.dtype == again.shift.dtype == torch.float32
    assert module.v_proj.weight.dtype == dtype
    assert shifts[-1] == pytest.approx(0.98**299 * shifts[0], rel=1e-3), "groups stay as they are"


def test_batches_of_an_update_move_the_shift_as_one() -> None:
    """However many batches an update is made of, it leaves 0.98 of the running mean."""
    x, _ = inputs(2, 5, 5)
    shifts = []
    for batches in (1, 2, 4):
        module = make("grouped_head", {"centre_shift": 0.05})
        assert isinstance(module, GroupedHeadAttention)
        for _ in range(10 * batches):
            module.groups.copy_(torch.tensor([0, 1, 0, 1]))  # other groups than those of x
            with recording([module]):
                module(x, x, x, need_weights=False)
            list(constraints([module], batches))
        shifts.append(float(module.shift))
    assert shifts[0] < 0.99
    assert shifts == pytest.approx([shifts[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("flags", [(), ("--amp",)])
def test_the_vote_runs_as_training_does(
    tiny_translation: PreparedData, flags: tuple[str, ...]
) -> None:
    """fairseq's task computes under autocast where the optimizer is that of --amp."""
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-epoch=1",
        "--vote-updates=1", *flags,
    )  # fmt: skip
    optimizers = []
    real_step = bench.task.train_step

    def train_step(sample: Any, model: Any, criterion: Any, optimizer: Any, *more: Any) -> Any:
        optimizers.append(optimizer)
        return real_step(sample, model, criterion, optimizer, *more)

    bench.task.train_step = train_step
    bench.task.begin_epoch(1, bench.model)
    assert [isinstance(one, AMPOptimizer) for one in optimizers] == [bool(flags)]
    assert bench.criterion.voting.phase == Phase.SETTLED
    assert [int(module.votes.sum()) for module in bench.modules] == [2] * LAYERS


class Overflowing(AMPOptimizer):
    """An optimizer of --amp whose first step finds gradients that are not finite."""

    def __init__(self) -> None:
        self.scale, self.steps = 128.0, 0

    @property
    def scaler(self) -> Any:
        return self

    def get_scale(self) -> float:
        return self.scale

    def step(self) -> None:
        self.steps += 1
        if self.steps == 1:
            self.scale /= 2


def test_an_overflow_is_no_update(tiny_translation: PreparedData) -> None:
    """fairseq trains on the batch once more, and the vote waits for that."""
    bench = Bench(
        tiny_translation, f"--criterion={GROUPED}", "--keep=pillars", "--vote-at-update=1"
    )
    bench.task.begin_epoch(1, bench.model)
    optimizer = Overflowing()
    bench.task.optimizer_step(optimizer, model=bench.model, update_num=0)
    assert bench.criterion.voting.phase == Phase.TRAINING
    bench.task.optimizer_step(optimizer, model=bench.model, update_num=0)
    assert bench.criterion.voting.phase == Phase.SETTLED


class Descent:
    """fairseq's side of an optimizer: a parameter with a gradient of 2, and steps of half of it."""

    def __init__(self, device: str) -> None:
        self.parameter = torch.nn.Parameter(torch.ones(1, device=device))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.5)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Any = None) -> Tensor:
        return torch.nn.utils.clip_grad_norm_([self.parameter], max_norm)

    def step(self) -> None:
        self.optimizer.step()


@devices
def test_amp_divides_gradients_by_the_scale_once(device: str) -> None:
    """A step is that without --amp; one whose gradients overflow is none, and halves the scale."""
    descent = Descent(device)
    optimizer = AMPOptimizer.__new__(AMPOptimizer)
    optimizer.fp32_optimizer, optimizer.min_loss_scale = descent, 1e-4
    optimizer._grad_scaler = torch.amp.GradScaler(device, init_scale=128.0)
    for factor, moved in ((1.0, 1.0), (float("inf"), 1.0), (1.0, 2.0)):
        descent.optimizer.zero_grad()
        optimizer.backward((descent.parameter * 2 * factor).sum())
        optimizer.clip_grad_norm(100.0)
        optimizer.step()
        assert float(descent.parameter.detach()) == pytest.approx(1.0 - moved)
    assert optimizer.scaler.get_scale() == 64.0


@devices
def test_training_with_amp(device: str, tiny_translation: PreparedData, tmp_path: Path) -> None:
    """On a CPU fairseq switches it off and says so; then it is a training in float32."""
    flags = ["--max-update=4", "--keep=pillars", "--vote-at-update=2", "--vote-updates=1"]
    weights = [
        Steps(device).train(tiny_translation, tmp_path / name, *flags, *more)["model"]
        for name, more in (("plain", []), ("amp", ["--amp"]))
    ]
    for mine, other in zip(weights[1].values(), weights[0].values(), strict=True):
        assert mine.dtype == other.dtype and mine.isfinite().all()
        if device == "cpu":
            assert torch.equal(mine, other)
    assert [sum(kept) for kept in buffers(weights[1], "kept")] == [2] * LAYERS


@needs_cuda
@pytest.mark.parametrize("precision", ["--fp16", "--memory-efficient-fp16"])
def test_a_vote_in_half_precision(
    precision: str, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    """On a GPU; on a CPU fairseq fails at the first gradient that overflows."""
    flags = ["--max-update=6", "--keep=pillars", "--vote-at-update=3", "--vote-updates=1"]
    flags += ["--checkpoint-activations", precision]
    weights = Steps("cuda").train(tiny_translation, tmp_path, *flags)["model"]
    assert [sum(kept) for kept in buffers(weights, "kept")] == [2] * LAYERS
    assert all(weight.isfinite().all() for weight in weights.values())
