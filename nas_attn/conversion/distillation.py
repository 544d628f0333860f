"""Train one converted module alone to give its trained twin's outputs.

What algebra cannot reach, a few hundred steps on recorded inputs may. An error of outputs counts by
what the loss feels of it: d M d^T with M the mean of g^T g over gradients g of the loss at that
output, labels drawn from the model itself. That is the loss's curvature there, to second order what
the error does to it (the Fisher matrix; Martens 2020, arXiv 1412.1193).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_attn.attention import Attention
from nas_attn.conversion.metric import RecordedCall, run

STEPS = 200
CHECKS = 6
"""Times that held-out sequences are asked, at equal distances."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
LEARNING_RATE = 0.1
"""The highest, as a share of the root mean square of the trained module's weights."""
BETAS = 0.9, 0.999
RIDGE = 0.1
"""Share of the mean of the metric's diagonal that is added to it: every direction counts a little,
for the matrix is an estimate."""
EXACT = 1e-6
"""Relative error of outputs below which there is nothing to train."""


@dataclass(frozen=True, kw_only=True)
class DistillationData:
    """What a module is trained on.

    Args:
        calls: Recorded calls of the trained module; one is one step's.
        held_out: Calls of other sequences, which say what is kept.
        metric: Weights (embed_dim, embed_dim) of errors, symmetric; all alike if None.
    """

    calls: Sequence[RecordedCall]
    held_out: Sequence[RecordedCall]
    metric: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What training a module alone did.

    Args:
        before: Relative error of outputs on held-out sequences, in the metric, before it.
        after: The same after it; never more.
        steps: Steps of the optimiser.
        seconds: Seconds that it took.
    """

    before: float
    after: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class _Batch:
    """A call, which of its queries count, and what the trained module makes of those (N, d), in
    the metric."""

    call: RecordedCall
    counts: Tensor
    wanted: Tensor


def distil(
    module: Attention,
    trained: Attention,
    data: DistillationData,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 1,
    device: torch.device | str = "cpu",
) -> Distilled:
    """Train a converted module on what its trained twin was called with.

    Adam in single precision and without dropout, the learning rate falling to 0 as a cosine. The
    state that serves held-out sequences best is kept, which may be the one that it began with; it
    stops half-way if none was better until then.

    Args:
        module: Converted module, changed in place; it stays where and in the type that it is.
        trained: Trained module.
        data: Inputs, and what counts.
        steps: Steps of the optimiser at most.
        learning_rate: The highest, a share of the root mean square of the trained module's weights.
        seed: Seed of the order of the calls; no other random numbers are drawn.
        device: Device that it is trained on.
    """
    began = time.monotonic()
    root = _root(data.metric, trained.embed_dim).to(device)
    teacher = copy.deepcopy(trained).to(device, torch.float32).eval()
    student = copy.deepcopy(module).to(device, torch.float32).eval()
    batches, held_out = (
        [_batch(teacher, call, root) for call in calls] for calls in (data.calls, data.held_out)
    )
    before = best = _error(student, held_out, root)
    kept = None
    weights = torch.cat([weight.detach().flatten() for weight in teacher.parameters()])
    highest = learning_rate * float(weights.square().mean().sqrt())
    every, done = max(1, steps // CHECKS), 0
    if not any(weight.numel() for weight in student.parameters()):
        steps = 0
    for done in _steps(student, batches, root, steps, highest, seed):
        if done % every and done < steps:
            continue
        error = _error(student, held_out, root)
        if error < best:
            best = error
            kept = {name: t.detach().clone() for name, t in student.state_dict().items()}
        elif kept is None and 2 * done >= steps:
            break
    if kept is not None:
        module.load_state_dict(kept)
    return Distilled(before=before, after=best, steps=done, seconds=time.monotonic() - began)


def _steps(
    student: Attention,
    batches: Sequence[_Batch],
    root: Tensor,
    steps: int,
    learning_rate: float,
    seed: int,
) -> Iterator[int]:
    """Train; yields after every step how many there were."""
    rows = sum(len(batch.wanted) for batch in batches)
    scale = sum(float(batch.wanted.square().sum()) for batch in batches) / max(1, rows)
    adam = _Adam([weight for weight in student.parameters() if weight.requires_grad])
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps):
        if not order:
            order = torch.randperm(len(batches), generator=generator).tolist()
        batch = batches[order.pop()]
        rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
        fall = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        loss = _lost(student, batch, root) / (len(batch.wanted) * scale)
        adam.step(loss, learning_rate * rise * fall)
        yield step + 1


class _Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980); torch's own loads its compiler, which takes two
    seconds of every process."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        self.means = [torch.zeros_like(weight) for weight in weights]
        self.squares = [torch.zeros_like(weight) for weight in weights]
        self.steps = 0

    def step(self, loss: Tensor, learning_rate: float) -> None:
        gradients = torch.autograd.grad(
            loss, self.weights, allow_unused=True, materialize_grads=True
        )
        self.steps += 1
        first, second = (1.0 - beta**self.steps for beta in BETAS)
        with torch.no_grad():
            for weight, gradient, mean, square in zip(
                self.weights, gradients, self.means, self.squares, strict=True
            ):
                mean.lerp_(gradient, 1.0 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
                size = (square / second).sqrt_().add_(1e-8)
                weight.addcdiv_(mean, size, value=-learning_rate / first)


def _lost(student: Attention, batch: _Batch, root: Tensor) -> Tensor:
    given = run(student, batch.call)[batch.counts] @ root
    return (given - batch.wanted).square().sum()


@torch.no_grad()
def _error(student: Attention, batches: Sequence[_Batch], root: Tensor) -> float:
    lost = sum(float(_lost(student, batch, root)) for batch in batches)
    size = sum(float(batch.wanted.square().sum()) for batch in batches)
    return math.sqrt(lost / max(size, 1e-30))


@torch.no_grad()
def _batch(teacher: Attention, call: RecordedCall, root: Tensor) -> _Batch:
    call = call.to(torch.float32, root.device)
    counts = call.valid_queries
    return _Batch(call, counts, run(teacher, call)[counts] @ root)


def _root(metric: Tensor | None, width: int) -> Tensor:
    """Lower triangle L (float32) with L L^T the metric, a ridge added, at a mean of one."""
    identity = torch.eye(width, dtype=torch.float64)
    if metric is None:
        return identity.float()
    metric = metric.to("cpu", torch.float64)
    mean = metric.diagonal().mean()
    if not bool(mean > 0.0):  # a module that the loss does not feel
        return identity.float()
    root: Tensor = torch.linalg.cholesky(metric / mean + RIDGE * identity)
    return root.float()
