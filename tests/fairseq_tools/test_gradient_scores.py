"""Scores by gradients: what they are to second order, for one module and for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_attn.conversion import recorded
from nas_attn.conversion.metric import run
from nas_attn.fairseq_tools import gradient_scores as module
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.convert import (
    BATCH_TOKENS,
    calibration_calls,
    convert_trained,
    validation_losses,
)
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.gradient_scores import DRAWS, SEED, gradient_scores
from nas_attn.fairseq_tools.trained import TrainedModel, load_batches, load_trained, spread
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.checkpoints import state_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq and hydra

SIDE = {"embed-dim": 8, "ffn-embed-dim": 8, "attention-heads": 2, "layers": 2}
FLAGS = {
    side: [f"--{side}-{name}={value}" for name, value in SIDE.items()]
    for side in ("encoder", "decoder")
}
MODELS: dict[str, dict[str, Any]] = {
    "translation": {"flags": [*FLAGS["encoder"], *FLAGS["decoder"]]},
    "language": {
        "arch": "transformer_lm",
        "task": "language_modeling",
        "flags": [*FLAGS["decoder"], "--tokens-per-sample=32"],
    },
}
NARROW = AttentionChoice.of("reduced_key", key_dim=2)
SHARED = AttentionChoice.of("multi_query")


@pytest.fixture(params=list(MODELS))
def trained(
    request: pytest.FixtureRequest,
    tiny_translation: PreparedData,
    tiny_language: PreparedData,
    tmp_path: Path,
) -> tuple[TrainedModel, Path, Path]:
    data = tiny_language if request.param == "language" else tiny_translation
    path = tmp_path / "trained.pt"
    save_checkpoint(state_of(data.folder, **MODELS[request.param]), path)
    return load_trained(path), path, data.folder


def everywhere(trained: TrainedModel, choice: AttentionChoice) -> AttentionPlan:
    return AttentionPlan.uniform(choice, tuple(trained.layers()))


def one_layer(trained: TrainedModel, site: str, choice: AttentionChoice) -> AttentionPlan:
    head = AttentionChoice.of("multi_head")
    return AttentionPlan.of({site: [choice] + [head] * (trained.layers()[site] - 1)})


def by_hand(trained: TrainedModel, path: Path, plan: AttentionPlan, data: Path) -> float:
    """The same by a factor on what the conversion changes, of which the loss is differentiated, the
    curvature sequence by sequence."""
    calls = calibration_calls(trained, data)
    twin, own = load_trained(path), load_trained(path)
    convert_trained(twin, plan, calls)
    factor = torch.zeros((), requires_grad=True)
    attention, changes = own.attention(), dict[str, Tensor]()
    for place, changed in twin.attention().items():
        if type(changed) is not type(attention[place]):
            attention[place].out_proj.register_forward_hook(
                lambda _, __, output, place=place: output + factor * changes.get(place, 0.0)
            )
    generator = torch.Generator().manual_seed(SEED)
    total, tokens = 0.0, 0
    model: Any = own.model
    for sample in spread(load_batches(own, data, "valid", BATCH_TOKENS), 10**9):
        seen = sample["target"] != 1
        changes.clear()
        with torch.no_grad(), recorded(attention) as called:
            model(**sample["net_input"])
        with torch.no_grad():
            found = {
                place: run(twin.attention()[place], call) - run(attention[place], call)
                for place, (call,) in called.items()
            }
        changes.update(found)
        scores = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
        losses = -scores.gather(-1, sample["target"][..., None])[..., 0].masked_fill(~seen, 0.0)
        (slope,) = torch.autograd.grad(losses.sum(), factor, retain_graph=True)
        total += float(slope)
        for _ in range(DRAWS):
            drawn = torch.zeros_like(sample["target"])
            chances = scores[seen].detach().exp()
            drawn[seen] = torch.multinomial(chances, 1, generator=generator)[:, 0]
            losses = -scores.gather(-1, drawn[..., None])[..., 0].masked_fill(~seen, 0.0)
            for row in losses:
                (slope,) = torch.autograd.grad(row.sum(), factor, retain_graph=True)
                total += float(slope) ** 2 / 2 / DRAWS
        tokens += int(seen.sum())
    return total / tokens / 0.6931471805599453


@pytest.mark.parametrize("choice", [NARROW, SHARED], ids=str)
def test_what_it_is_to_second_order(
    trained: tuple[TrainedModel, Path, Path], choice: AttentionChoice
) -> None:
    """Of one layer; of all it would be so if modules did not see what those before them changed,
    which is of higher order, so there only layers beside each other are compared."""
    model, path, data = trained
    plan = one_layer(model, "decoder_self", choice)
    (score,) = gradient_scores(model, [plan], calibration_calls(model, data), data)
    assert score.change == pytest.approx(by_hand(model, path, plan, data), rel=1e-3, abs=1e-7)
    assert score.error > 0


def test_small_changes_are_what_is_measured(trained: tuple[TrainedModel, Path, Path]) -> None:
    """A conversion that is nearly exact: both are small, and near each other."""
    model, path, data = trained
    calls = calibration_calls(model, data)
    with torch.no_grad():  # the second key of each head says next to nothing
        for attention in model.attention().values():
            rows = torch.arange(attention.embed_dim) % attention.head_dim >= 2
            attention.k_proj.weight[rows] *= 0.05
            attention.k_proj.bias[rows] = 0.0
    model.state["model"] = model.model.state_dict()
    save_checkpoint(model.state, path)
    before = validation_losses(load_trained(path), data)
    plan = everywhere(model, NARROW)
    (score,) = gradient_scores(load_trained(path), [plan], calls, data)
    made = load_trained(path)
    convert_trained(made, plan, calls)
    change, error = validation_losses(made, data).change_from(before)
    assert score.change == pytest.approx(change, abs=max(3 * error, 0.5 * abs(change), 1e-6))


def test_scores_do_not_hang_on_their_company(
    trained: tuple[TrainedModel, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass or in several, and the model stays as it is."""
    model, _, data = trained
    calls = calibration_calls(model, data)
    before = {name: t.clone() for name, t in model.model.state_dict().items()}
    plans = [
        one_layer(model, site, choice) for site in model.layers() for choice in (NARROW, SHARED)
    ]
    plans += [everywhere(model, SHARED)]
    together = gradient_scores(model, plans, calls, data)
    passes = []
    whole = module._score
    monkeypatch.setattr(module, "_score", lambda *given: passes.append(0) or whole(*given))
    monkeypatch.setattr(module, "MAX_BYTES", 1)
    assert gradient_scores(model, plans, calls, data) == together
    assert len(passes) == len(plans)
    assert all(torch.equal(t, before[name]) for name, t in model.model.state_dict().items())
    (same,) = gradient_scores(
        model, [everywhere(model, AttentionChoice.of("multi_head"))], calls, data
    )
    assert same.change == 0.0
