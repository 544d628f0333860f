"""What takes less memory changes no result: accumulated gradients, activations made again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq import utils
from torch import Tensor

from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.attention import schemes_but_long
from tests.helpers.devices import devices, needs_cuda
from tests.helpers.grouped import GROUPED, LAYERS, Bench

SHORT = schemes_but_long("collaborative", "grouped_head", "latent", "none")
PLAIN = [pytest.param(*scheme.values, "", marks=scheme.marks) for scheme in SHORT]
FEATURES = [("grouped_head", f"--feature={name}") for name in ("value", "attention", "output")]
FIRST, SECOND = (0, 1, 2, 3), (4, 5)


def trained(bench: Bench, *batches: tuple[int, ...], device: str = "cpu") -> tuple[float, Tensor]:
    """Loss and gradients of an update, as fairseq's trainer adds them up and divides by tokens."""
    bench.model.to(device).zero_grad()
    samples = [bench.sample(*lines) for lines in batches]
    loss = torch.zeros((), device=device)
    for sample in samples:
        part = bench.loss(utils.apply_to_sample(lambda tensor: tensor.to(device), sample))
        part.backward()
        loss += part.detach()
    tokens = sum(sample["ntokens"] for sample in samples)
    grads = [p.grad.flatten() for p in bench.model.parameters() if p.grad is not None]
    assert len(grads) == sum(parameter.requires_grad for parameter in bench.model.parameters())
    return float(loss) / tokens, torch.cat(grads).cpu() / tokens


@devices
@pytest.mark.parametrize(("scheme", "option"), [*PLAIN, *FEATURES])
def test_checkpointed_activations(
    scheme: str, option: str, device: str, tiny_translation: PreparedData
) -> None:
    """Also of the group constraint, whose features layers leave beside their outputs."""
    flags = [f"--criterion={GROUPED}", *([option, "--alpha=40", "--beta=20"] if option else [])]
    more = ["--checkpoint-activations"]
    more += ["--offload-activations"] if device == "cuda" else []
    kept, made_again = (Bench(tiny_translation, *flags, *m, arch=scheme) for m in ([], more))
    expected, gradient = trained(kept, FIRST, SECOND, device=device)
    loss, found = trained(made_again, FIRST, SECOND, device=device)
    assert loss == pytest.approx(expected, rel=1e-5)
    # A GPU adds up gradients of embeddings in any order.
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6 if device == "cpu" else 1e-5)
    for module in made_again.modules:
        assert not module.is_recording and module.products is None, "nothing is left of it"
    if option:
        plain = Bench(tiny_translation, "--criterion=label_smoothed_cross_entropy", arch=scheme)
        without = trained(plain, FIRST, SECOND, device=device)[1]
        assert float((gradient - without).norm()) > 1e-2 * float(without.norm())


@pytest.mark.parametrize("scheme", SHORT)
def test_accumulated_gradients(scheme: str, tiny_translation: PreparedData) -> None:
    """Of two batches they are those of one, where nothing is compared over a batch."""
    bench = Bench(tiny_translation, "--criterion=label_smoothed_cross_entropy", arch=scheme)
    expected, gradient = trained(bench, (*FIRST, *SECOND))
    loss, found = trained(bench, FIRST, SECOND)
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("group_loss", ["sum", "mean"])
def test_weight_of_the_constraint_in_accumulated_gradients(
    group_loss: str, tiny_translation: PreparedData
) -> None:
    """By batches, as released, or by tokens, as written: here of a batch that comes twice."""
    flags = [f"--criterion={GROUPED}", f"--group-loss={group_loss}", "--alpha=4", "--beta=2"]
    grouped = Bench(tiny_translation, *flags)
    plain = Bench(tiny_translation, "--criterion=label_smoothed_cross_entropy")
    once, twice = (
        [
            had - had_not
            for had, had_not in zip(
                trained(grouped, *batches), trained(plain, *batches), strict=True
            )
        ]
        for batches in ((FIRST * 2,), (FIRST, FIRST))
    )
    weight = 2.0 if group_loss == "sum" else 1.0
    assert twice[0] == pytest.approx(weight * once[0], rel=1e-3)
    torch.testing.assert_close(twice[1], weight * once[1], rtol=1e-2, atol=1e-5)
    assert abs(float(once[0])) > 1e-3
    assert len(grouped.modules) == LAYERS


@needs_cuda
def test_checkpointing_takes_less_memory(tiny_translation: PreparedData, tmp_path: Path) -> None:
    """With the constraint, too: what is recorded is heads by heads."""
    peaks = []
    for more in ([], ["--checkpoint-activations"]):
        bench = Bench(tiny_translation, f"--criterion={GROUPED}", "--feature=attention", *more)
        lines = tuple(range(200))
        trained(bench, lines, device="cuda")  # what libraries keep for themselves is there now
        torch.cuda.reset_peak_memory_stats()
        trained(bench, lines, device="cuda")
        peaks.append(torch.cuda.max_memory_allocated())
        del bench
        torch.cuda.empty_cache()
    assert peaks[1] < peaks[0]
