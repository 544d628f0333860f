"""Converted modules that are trained alone: better on unseen sequences, or as they were."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from nas_attn.attention import Attention, build_attention
from nas_attn.attention.registry import SCHEMES
from nas_attn.conversion import RecordedCall, convert_attention, inherits
from nas_attn.conversion.distillation import DistillationData, distil
from nas_attn.conversion.metric import run
from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice
from tests.helpers.devices import devices

WIDTH, HEADS = 16, 4
of = AttentionChoice.of
OPTIONS: dict[str, dict[str, int]] = {
    "collaborative": {"shared_dim": 6},
    "grouped_query": {"num_groups": 2},
    "none": {"output_bias": True},
    "grouped_head": {"kept_heads": 2},
    "reduced_key": {"key_dim": 4},
}
NARROW = [of(name, **OPTIONS.get(name, {})) for name in SCHEMES if name != "multi_head"]


def trained() -> Attention:
    torch.manual_seed(0)
    module = build_attention("multi_head", WIDTH, HEADS)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.35)
    return module.eval()


def make_calls(count: int, seed: int) -> list[RecordedCall]:
    """Inputs of few loud directions; a part of the sequences is padded, with what is no number."""
    turn = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(7)) / 4
    generator = torch.Generator().manual_seed(seed)
    calls = []
    for _ in range(count):
        inputs = torch.randn(16, 8, 24, generator=generator) * torch.linspace(2.0, 0.1, 24)
        query = inputs @ turn + 0.3
        padding = torch.zeros(16, 8, dtype=torch.bool)
        padding[::3, 6:] = True
        query[padding] = float("nan")
        calls.append(RecordedCall(query, query, query, key_padding_mask=padding))
    return calls


CALLS = make_calls(8, seed=1)
TAUGHT = DistillationData(calls=CALLS, held_out=make_calls(2, seed=2))
UNSEEN = make_calls(2, seed=3)


def error(
    module: Attention, calls: list[RecordedCall], metric: torch.Tensor | None = None
) -> float:
    """Relative error of outputs, by its definition."""
    metric = torch.eye(WIDTH).double() if metric is None else metric.double()
    lost = size = 0.0
    reference = trained().double()
    with torch.no_grad():
        for call in (call.to(torch.float64) for call in calls):
            wanted = run(reference, call)[call.valid_queries]
            off = run(copy.deepcopy(module).double(), call)[call.valid_queries] - wanted
            lost += float(((off @ metric) * off).sum())
            size += float(((wanted @ metric) * wanted).sum())
    return (lost / size) ** 0.5


@pytest.mark.parametrize("choice", NARROW, ids=str)
def test_every_scheme_gains_on_unseen_sequences(choice: AttentionChoice) -> None:
    before = convert_attention(trained(), choice, CALLS[:1], force=True).module
    module, again, reference = copy.deepcopy(before), copy.deepcopy(before), trained()
    state = torch.random.get_rng_state()
    done = distil(module, reference, TAUGHT, steps=30, learning_rate=0.02)
    distil(again, reference, TAUGHT, steps=30, learning_rate=0.02)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert done.after < done.before == pytest.approx(error(before, TAUGHT.held_out), rel=1e-3)
    assert done.after == pytest.approx(error(module, TAUGHT.held_out), rel=1e-3)
    assert error(module, UNSEEN) < error(before, UNSEEN)
    first, second, untrained = (m.state_dict() for m in (module, again, before))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name: (t.shape, t.dtype) for name, t in first.items()} == {
        name: (t.shape, t.dtype) for name, t in untrained.items()
    }
    assert inherits(before, distilled=True)


def test_what_is_worse_on_unseen_sequences_is_not_kept() -> None:
    """Nor what is no number any more."""
    for learning_rate in (10.0, 1e30):
        module = convert_attention(trained(), of("multi_query"), CALLS[:1]).module
        before = copy.deepcopy(module.state_dict())
        done = distil(module, trained(), TAUGHT, steps=6, learning_rate=learning_rate)
        assert done.after == done.before
        assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


@devices
def test_errors_count_by_what_the_loss_feels(device: str) -> None:
    """Of outputs that lie in two halves, the half that counts becomes more exact."""
    felt = torch.diag(torch.tensor([1.0, 0.0]).repeat_interleave(WIDTH // 2))
    found = {}
    for name, metric in (("felt", felt), ("unfelt", felt.flip(0, 1)), ("nothing", 0 * felt)):
        data = replace(TAUGHT, metric=metric)
        some = partial(distil, data=data, steps=30, learning_rate=0.02, device=device)
        module = convert_attention(trained(), of("single_head"), CALLS[:1], distil=some).module
        found[name] = error(module, UNSEEN, felt)
    assert found["felt"] < found["nothing"] < found["unfelt"]


def test_what_is_exact_is_left() -> None:
    def never(module: Attention, trained: Attention) -> None:
        raise AssertionError("there is nothing to train")

    choice = of("collaborative", shared_dim=WIDTH)
    plain = convert_attention(trained(), choice, CALLS[:1]).module.state_dict()
    found = convert_attention(trained(), choice, CALLS[:1], distil=never)  # type: ignore[arg-type]
    assert found.distilled is None
    assert all(torch.equal(plain[name], t) for name, t in found.module.state_dict().items())


def test_added_embeddings_inherit_only_by_distillation() -> None:
    module = build_attention("head_embedding_add", WIDTH, HEADS)
    assert not inherits(module)
    assert inherits(module, distilled=True)
    with pytest.raises(PlanError, match="distil it, or force the conversion"):
        convert_attention(trained(), of("head_embedding_add"), CALLS)
