"""Votes on checkpoints: the same whoever holds them, and exact costs before any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nas_attn.analysis.predictions import Predictions
from nas_attn.attention.counting import count_model
from nas_attn.conversion import recorded
from nas_attn.engine.config import ExecutionConfig
from nas_attn.engine.votes import votes_of
from nas_attn.fairseq_tools import trained as trained_models
from nas_attn.fairseq_tools import vote as voting
from nas_attn.fairseq_tools.convert import calibration_calls, convert_checkpoint, convert_trained
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.inherited_votes import hold_votes, votes_on_offer
from nas_attn.fairseq_tools.measure import calibrate, load_calibration
from nas_attn.fairseq_tools.prune import prune_model
from nas_attn.fairseq_tools.trained import build_trained, load_batches, load_trained
from nas_attn.fairseq_tools.vote import MAX_TOKENS, vote_on_data
from nas_attn.plan import AttentionChoice
from nas_attn.space import Votes
from nas_attn.study.sensitivity import SensitivityTarget, target_of_checkpoint
from nas_attn.workflows.sensitivity import checkpoint_session
from nas_attn.workflows.votes import hold_on_baseline
from tests.helpers.checkpoints import state_of
from tests.helpers.votes import settled_by

pytestmark = pytest.mark.filterwarnings("ignore")
SIDE = {"embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 8, "layers": 2}
FLAGS = [f"--{side}-{name}={v}" for side in ("encoder", "decoder") for name, v in SIDE.items()]
SPACE = """
decide: site
schemes:
  multi_head: {}
  grouped_head (pillars): {num_groups: [3], keep: [pillars], feature: [value, attention]}
  grouped_head (threshold): {num_groups: [2], keep: [threshold], vote_threshold: [0.5]}
  grouped_head (random): {num_groups: [2], keep: [random]}
"""
VOTES = [
    {"num_groups": 3, "keep": "pillars", "feature": "value"},
    {"num_groups": 3, "keep": "pillars", "feature": "attention"},
    {"num_groups": 2, "keep": "threshold", "vote_threshold": 0.5},
    {"num_groups": 2, "keep": "random"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_translation: PreparedData) -> Path:
    path = tmp_path_factory.mktemp("votes") / "checkpoint_best.pt"
    torch.save(state_of(tiny_translation.folder, "transformer", flags=FLAGS), path)
    return path


@pytest.fixture(scope="module")
def target(checkpoint: Path, tiny_translation: PreparedData) -> SensitivityTarget:
    space = checkpoint.parent / "space.yaml"
    space.write_text(SPACE)
    return target_of_checkpoint(
        checkpoint,
        tiny_translation.folder,
        str(space),
        cost="non_embedding",
        runs=checkpoint.parent / "runs",
        execution=ExecutionConfig(),
    )


def test_votes_are_those_that_pruning_with_data_holds(
    checkpoint: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same batches: nas-attn prune --calibrate takes those of the validation split.

    In double precision, for heads of random weights are so nearly alike that rounding decides.
    """
    for module in (trained_models, voting):
        monkeypatch.setattr(
            module, "build_trained", lambda *a, **n: build_trained(*a, **n).double()
        )
    trained = load_trained(checkpoint)
    batches = load_batches(trained, tiny_translation.folder, "valid", MAX_TOKENS)
    with recorded(trained.attention()) as calls, torch.no_grad():
        for number in range(len(batches.lines)):
            trained.model(**batches[number]["net_input"])
    for options in VOTES:
        choice = AttentionChoice.of("grouped_head", **options)
        wanted = [(site, layer, choice) for site, layer in trained.modules]
        held = hold_votes(trained, wanted, calls)
        masked = vote_on_data(checkpoint, tiny_translation.folder, options, refit=False)
        kept = {
            name: tensor.nonzero().squeeze(1).tolist()
            for name, tensor in masked[1].items()
            if name.endswith(".kept")
        }
        ours = [dict(held.settled[f"{s}.{layer}", choice].options) for s, layer, _ in wanted]
        assert [o["heads"] for o in ours] == [",".join(map(str, k)) for k in kept.values()], options
        _, _, parts = prune_model(*masked)
        assert {p: o["kept_heads"] for p, o in zip(parts, ours, strict=True)} == {
            place: left for place, (left, _) in parts.items()
        }


def test_whoever_converts_comes_to_the_same_heads_and_costs_are_exact(
    checkpoint: Path, target: SensitivityTarget, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    data = tiny_translation.folder
    calibrate(checkpoint, data, tmp_path / "calibration.pt")
    recorded_calls = load_calibration(tmp_path / "calibration.pt").calls
    trained = load_trained(checkpoint)
    votes = hold_votes(trained, votes_on_offer(target.space), recorded_calls)
    assert votes == hold_votes(
        load_trained(checkpoint),
        votes_on_offer(target.space),
        calibration_calls(load_trained(checkpoint), data),
    )
    assert len(votes.settled) == len(VOTES) * 6
    json.dumps(votes.to_json())
    settled = target.settled(votes)
    for number in range(1, len(VOTES) + 1):
        options = [unit.alternatives[number] for unit in target.space.units]
        asked = target.space.plan(options)
        known = settled.space.plan([unit.alternatives[number] for unit in settled.space.units])
        assert known == settled_by(votes, asked, trained.layers()) != asked
        assert target.inherits(known)
        costs = settled.costs.known(known)
        models = []
        for plan in (asked, known):
            model = load_trained(checkpoint)
            made = convert_trained(model, plan, recorded_calls)
            assert made.plan == known
            assert dict(made.modules[0].choice.options)["heads"]
            assert count_model(model.model)._asdict().items() <= costs.items()
            models.append(model.model.state_dict())
        assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())
    done = convert_checkpoint(checkpoint, asked, tmp_path / "out.pt", data=data)
    assert done.plan == known == load_trained(tmp_path / "out.pt").plan
    assert done.parameters[1] == costs["total"]
    by_weights = convert_checkpoint(checkpoint, asked, tmp_path / "all.pt")
    assert by_weights.plan == asked, "without data training votes"


def test_votes_leave_the_model_as_it_is(
    checkpoint: Path, target: SensitivityTarget, tiny_translation: PreparedData
) -> None:
    trained = load_trained(checkpoint)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    calls = calibration_calls(trained, tiny_translation.folder)
    hold_votes(trained, votes_on_offer(target.space)[:2], calls)
    after = trained.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_votes_are_held_once_and_predictions_are_of_what_they_left(
    target: SensitivityTarget, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    assert target.checkpoint is not None
    trainer = checkpoint_session(
        target.checkpoint,
        tiny_translation.folder,
        str(target.checkpoint.parent / "space.yaml"),
        cost="non_embedding",
        workers=1,
        runs=tmp_path,
        address=None,
        events=None,
    )
    assert isinstance(trainer.subject, SensitivityTarget)
    hold_on_baseline(trainer, trainer.subject)
    folder = trainer.subject.folder / "sensitivity"
    votes = votes_of(trainer.store)
    assert Votes.from_json(json.loads((folder / "votes.json").read_text())) == votes
    assert len(votes.settled) == len(VOTES) * 6
    (folder / "calibration.pt").unlink()
    hold_on_baseline(trainer, trainer.subject)
    assert not (folder / "calibration.pt").exists(), "what is on record is not held again"
    predictions = Predictions(trainer.subject, trainer.store, create=True)
    assert len(predictions.changes) == len(VOTES) * 3
    for change in predictions.changes:
        assert "keep=" in change.choice
        assert '"keep"' not in change.plan.dumps()
        assert '"heads"' in change.plan.dumps()
