"""A predicted front of a PyTorch model that has nothing to do with fairseq."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import nas_attn
from nas_attn.conversion import Conversions, convert_model
from nas_attn.errors import ConfigError, NasAttnError, PlanError, UsageError
from nas_attn.plan import AttentionChoice, AttentionPlan

SPACE = """
decide: layer
schemes:
  multi_head: {}
  multi_query: {}
  reduced_key: {key_dim: [4, 8]}
  collaborative: {shared_dim: [2, 4, 8], num_value_heads: [1]}
  head_embedding_add: {}
"""


class Tagger(nn.Module):
    """Says of each token whether the first one comes again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.embed(tokens)))
        return scores


def examples(count: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(12, (count, 7), generator=torch.Generator().manual_seed(count))
    return tokens, (tokens == tokens[:, :1]).long()


def losses(model: nn.Module) -> Tensor:
    """Of each example, in bits a token."""
    tokens, labels = examples(200)
    with torch.no_grad():
        return loss_of(model, tokens, labels)


def loss_of(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    each = nn.functional.cross_entropy(model(tokens).mT, labels, reduction="none")
    return each.mean(1) / math.log(2.0)


@pytest.fixture(scope="module")
def trained() -> Tagger:
    model = Tagger()
    adam = torch.optim.Adam(model.parameters(), 0.003)
    tokens, labels = examples(4096)
    for step in range(256):
        some = slice(step % 32 * 128, (step % 32 + 1) * 128)
        adam.zero_grad()
        nn.functional.cross_entropy(model(tokens[some]).mT, labels[some]).backward()
        adam.step()
    return model.eval()


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return str(path)


def test_predictions_are_what_conversions_do(trained: Tagger, space: str, tmp_path: Path) -> None:
    before = {name: t.clone() for name, t in trained.state_dict().items()}
    found = nas_attn.predict_model_front(
        trained, losses, space=space, checks=12, folder=tmp_path / "front", name="tagger"
    )
    assert len(found.changes) == 2 * 6, "added embeddings cannot inherit"
    base = losses(trained)
    for plan, measured in list(found.measured.items())[::3]:
        made = copy.deepcopy(trained)
        convert_model(made, plan, losses)
        changes = (losses(made) - base).double()
        assert measured.change == pytest.approx(float(changes.mean()), abs=1e-5)
        error = float(changes.std()) / math.sqrt(len(changes))
        assert measured.error == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert found.base_cost == 2 * 4 * (16 * 16 + 16)
    costs = [point.cost for point in found.front]
    assert costs == sorted(costs) and costs[0] < costs[-1] <= found.base_cost
    assert len(found.checks) >= 6 and found.validity is not None
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())
    assert len(pd.read_csv(tmp_path / "front" / "predicted.csv")) == len(found.front)
    assert "# tagger: what" in (tmp_path / "front" / "summary.md").read_text()


def test_nothing_is_measured_twice(trained: Tagger, space: str, tmp_path: Path) -> None:
    """Not even what was measured before the run was killed, but a line that was torn is."""
    folder = tmp_path / "front"
    count = [0]

    def counted(model: nn.Module) -> Tensor:
        count[0] += 1
        return losses(model)

    def run(checks: int, model: nn.Module = trained) -> int:
        count[0] = 0
        nas_attn.predict_model_front(
            model, counted, run=losses, space=space, checks=checks, folder=folder
        )
        return count[0] - 1  # the model as it was

    assert run(0) == 12
    assert run(0) == 0
    tests = run(12)
    assert tests >= 6
    kept = folder / "measured.jsonl"
    kept.write_text(kept.read_text()[:-9])
    assert run(12) == 1
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.head.weight += 1.0
    with pytest.raises(NasAttnError, match="a model with other weights"):
        run(0, other)
    kept.write_text("no JSON\n")
    with pytest.raises(NasAttnError, match="cannot be used"):
        run(0)


def test_a_mean_alone_has_no_error(trained: Tagger, space: str) -> None:
    found = nas_attn.predict_model_front(
        trained, lambda model: losses(model).mean(), space=space, checks=0
    )
    assert all(math.isnan(measured.error) for measured in found.measured.values())
    assert found.validity is None


def test_what_is_refused(trained: Tagger, space: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 checks or more"):
        nas_attn.predict_model_front(trained, losses, checks=-1)
    with pytest.raises(ConfigError):
        nas_attn.predict_model_front(trained, losses, space="no_such_space")
    with pytest.raises(NasAttnError, match="votes on heads"):
        nas_attn.predict_model_front(trained, losses, space="inherited_voted_per_layer")
    with pytest.raises(PlanError, match="no attention"):
        nas_attn.predict_model_front(nn.Linear(2, 2), lambda m: m(torch.ones(1, 2)))
    with pytest.raises(NasAttnError, match="is no number"):
        nas_attn.predict_model_front(
            trained, lambda model: losses(model) * math.nan, run=losses, space=space
        )
    lone = tmp_path / "lone.yaml"
    lone.write_text("schemes: {multi_head: {}, head_embedding_add: {}}\n")
    with pytest.raises(NasAttnError, match="no choice of the space"):
        nas_attn.predict_model_front(trained, losses, space=str(lone))


def test_a_model_goes_from_plan_to_plan(trained: Tagger) -> None:
    """And back, to the last bit of what it was by ours."""
    conversions = Conversions(trained, losses)
    site = {"encoder_self": AttentionChoice.of("multi_query")}
    own = losses(conversions.convert(AttentionPlan.of({})))
    assert own == pytest.approx(losses(trained), abs=1e-5)
    shared = losses(conversions.convert(AttentionPlan.of(site)))
    assert not torch.equal(shared, own)
    assert torch.equal(losses(conversions.convert(AttentionPlan.of({}))), own)
    assert torch.equal(losses(conversions.convert(AttentionPlan.of(site))), shared)
    (shape,) = conversions.shapes.values()
    assert (shape.num_layers, shape.embed_dim, shape.num_heads) == (2, 16, 4)
    with pytest.raises(PlanError, match="this model lacks"):
        conversions.convert(AttentionPlan.uniform(AttentionChoice.of("multi_query")))
