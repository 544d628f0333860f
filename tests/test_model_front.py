"""A predicted front of a PyTorch model that has nothing to do with fairseq."""

from __future__ import annotations

import copy
import html
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import nas_attn
from nas_attn.analysis.sensitivity import SensitivityFindings
from nas_attn.attention.counting import count_model
from nas_attn.conversion import Conversions, convert_model
from nas_attn.engine.snapshot import Snapshot
from nas_attn.errors import ConfigError, NasAttnError, PlanError, UsageError
from nas_attn.measures import Scores
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.rank_agreement import kendall
from nas_attn.workflows.events import LogEvents
from nas_attn.workflows.model_front import ModelFront

SPACE: dict[str, Any] = {
    "decide": "layer",
    "schemes": {
        "multi_head": {},
        "multi_query": {},
        "reduced_key": {"key_dim": [4, 8]},
        "collaborative": {"shared_dim": [2, 4, 8], "num_value_heads": [1]},
        "head_embedding_add": {},
    },
}
Batch = tuple[Tensor, Tensor]


class Tagger(nn.Module):
    """Tells something of each token, mostly by what stands around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.embed(tokens)))
        return scores


def as_if_trained() -> Tagger:
    """Its predictions depend on attention, and labels are drawn from them, so that it is best."""
    model = Tagger().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attn" in name and weight.dim() == 2:
                weight *= 2.0
            elif name == "head.weight":
                weight *= 4.0
    return model


@pytest.fixture(scope="module")
def trained() -> Tagger:
    return as_if_trained()


@cache
def batches(count: int = 200) -> tuple[Batch, ...]:
    make = torch.Generator().manual_seed(count)
    tokens = torch.randint(12, (count, 7), generator=make)
    with torch.no_grad():
        chances = as_if_trained()(tokens).softmax(-1).flatten(0, 1)
    labels = torch.multinomial(chances, 1, generator=make).view(count, 7)
    return tuple(zip(tokens.split(50), labels.split(50), strict=True))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Of each example, in bits a token."""
    tokens, labels = batch
    each = nn.functional.cross_entropy(model(tokens).mT, labels, reduction="none")
    return each.mean(1) / math.log(2.0)


@torch.no_grad()
def losses(model: nn.Module) -> Tensor:
    return torch.cat([loss_of(model, batch) for batch in batches()])


def test_predictions_are_what_conversions_do(trained: Tagger, tmp_path: Path) -> None:
    before = {name: t.clone() for name, t in trained.state_dict().items()}
    front = nas_attn.predict_front(
        trained, batches(), loss_of, SPACE, checks=12, folder=tmp_path / "front", name="<tagger>"
    )
    found = front.findings
    assert len(found.changes) == 2 * 6, "added embeddings cannot inherit"
    base = losses(trained)
    for plan, measured in list(found.measured.items())[::3]:
        made = copy.deepcopy(trained)
        convert_model(made, plan, losses)
        changes = (losses(made) - base).double()
        assert measured.change == pytest.approx(float(changes.mean()), abs=1e-5)
        error = float(changes.std()) / math.sqrt(len(changes))
        assert measured.error == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert losses(front.convert(plan)) == pytest.approx(losses(made), abs=1e-5)
    assert found.base_cost == 2 * 4 * (16 * 16 + 16)
    costs = [point.cost for point in found.front]
    assert costs == sorted(costs) and costs[0] < costs[-1] <= found.base_cost
    assert len(found.checks) >= 6 and found.validity is not None
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())
    assert len(pd.read_csv(tmp_path / "front" / "predicted.csv")) == len(found.front)
    least = front.convert(0)
    assert count_model(least).attention == front.recommended[0].cost
    with pytest.raises(UsageError, match="plans are recommended, from 0 on"):
        front.convert(len(front.recommended))
    assert front.page is not None
    page = front.page.read_text()
    assert "&lt;tagger&gt;: predicted front" in page and "<tagger>" not in page
    lines = [html.unescape(one) for one in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    made = copy.deepcopy(trained)
    exec(lines[0], {"model": made, "loss": loss_of, "batches": batches()})
    assert losses(made) == pytest.approx(losses(least), abs=1e-5)


def test_nothing_is_measured_twice(trained: Tagger, tmp_path: Path) -> None:
    """Not even what was measured before the run was killed, but a line that was torn is."""
    passes = [0]

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        passes[0] += torch.equal(batch[0], batches()[0][0])
        return loss_of(model, batch)

    def run(checks: int, model: nn.Module = trained, count: int = 200, fitted: int = 100) -> int:
        passes[0] = 0
        nas_attn.predict_front(
            *(model, batches(count), counted, SPACE),
            calibration=batches(fitted),
            checks=checks,
            folder=tmp_path / "front",
        )
        return passes[0] - 1  # the model as it was

    with pytest.raises(KeyboardInterrupt):
        nas_attn.predict_front(
            *(trained, batches(), loss_of, SPACE),
            calibration=batches(100),
            folder=tmp_path / "front",
            events=Impatient(after=5),
        )
    assert run(0) == 12 - 5
    assert run(12) >= 6
    kept = tmp_path / "front" / "measured.jsonl"
    kept.write_text(kept.read_text()[:-9])
    assert run(12) == 1
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.head.weight += 1.0
    with pytest.raises(NasAttnError, match="a model with other weights"):
        run(0, other)
    with pytest.raises(NasAttnError, match="other data or another loss: give another folder"):
        run(0, count=100)
    with pytest.raises(NasAttnError, match="of other calibration data"):
        run(0, fitted=200)
    kept.write_text("no JSON\n")
    with pytest.raises(NasAttnError, match="cannot be used"):
        run(0)


class Impatient(LogEvents):
    """Interrupts once so many are measured."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.endings = after, []

    def on_change(self, snapshot: Callable[[], Snapshot]) -> None:
        assert snapshot().budget == 12
        if snapshot().finished == self.after:
            raise KeyboardInterrupt


def test_scores_by_gradients_order_plans_and_spare_passes(trained: Tagger) -> None:
    def predicted(scores: Scores) -> SensitivityFindings:
        return nas_attn.predict_front(
            trained, batches(), loss_of, SPACE, checks=20, scores=scores
        ).findings

    scored, whole = predicted("gradient"), predicted("measured")
    singles = [change.plan for change in scored.changes]
    assert len(singles) == 12 and sum(plan in scored.measured for plan in singles) == 6
    both = [(scored.scores[p].change, whole.measured[p].change) for p in singles]
    assert kendall(*zip(*both, strict=True)) > 0.6
    assert scored.validity is not None and scored.validity.ranks.overall > 0.6
    auto = predicted("auto")
    assert 6 < sum(plan in auto.measured for plan in singles) <= 12
    with pytest.raises(UsageError, match="loss is 0, so its gradients say nothing"):
        nas_attn.predict_front(
            trained,
            [tokens for tokens, _ in batches()],
            lambda model, batch: (model(batch) - trained(batch)).square().mean((1, 2)),
            SPACE,
            scores="gradient",
        )
    with pytest.raises(NasAttnError, match="the loss has no gradient"):
        nas_attn.predict_front(
            *(trained, batches(), lambda m, b: loss_of(m, b).detach(), SPACE), scores="auto"
        )
    with pytest.raises(NasAttnError, match="1 numbers for a batch of 50 examples"):
        nas_attn.predict_front(
            *(trained, batches(), lambda m, b: loss_of(m, b).mean(), SPACE), scores="auto"
        )


def test_modules_are_trained_alone_and_kept(trained: Tagger, tmp_path: Path) -> None:
    few = {"decide": "layer", "schemes": {"multi_head": {}, "head_embedding_add": {}}}
    plain = nas_attn.predict_front(
        trained, batches(), loss_of, {**few, "schemes": {"multi_head": {}, "multi_query": {}}},
        checks=0,
    )  # fmt: skip
    before = float((losses(plain.convert(0)) - losses(trained)).mean())
    assert float((losses(plain.convert(0, distil=True)) - losses(trained)).mean()) < 0.8 * before
    assert float((losses(plain.convert(0)) - losses(trained)).mean()) == pytest.approx(before)

    def run() -> ModelFront:
        return nas_attn.predict_front(
            trained, batches(), loss_of, few, distil=True, checks=0, folder=tmp_path
        )

    first = run()
    assert len(first.findings.changes) == 2, "what cannot inherit is trained to"
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "modules").iterdir()}
    assert len(files) == 2
    again = run().convert(0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "modules").iterdir()} == files
    assert torch.equal(losses(again), losses(first.convert(0)))


def test_limits_and_a_second_cost(trained: Tagger) -> None:
    whole = nas_attn.predict_front(trained, batches(), loss_of, SPACE, checks=0)
    limit = whole.findings.front[len(whole.findings.front) // 2].cost
    found = nas_attn.predict_front(
        *(trained, batches(), loss_of, SPACE),
        cost="total",
        second_cost="effective",
        limits={"attention": limit},
        checks=0,
    ).findings
    rest = count_model(trained).total - whole.findings.base_cost
    assert found.base_cost == count_model(trained).total
    assert found.front[-1].cost == limit + rest
    assert len(found.surface) >= len(found.front)
    with pytest.raises(UsageError, match="cache_bytes is no cost of this model"):
        nas_attn.predict_front(trained, batches(), loss_of, SPACE, limits={"cache_bytes": 1.0})


def test_a_mean_alone_has_errors_of_its_batches(trained: Tagger) -> None:
    def found(data: list[Batch]) -> SensitivityFindings:
        return nas_attn.predict_front(
            trained, data, lambda m, b: float(loss_of(m, b).mean()), SPACE, checks=0
        ).findings

    assert all(measured.error >= 0.0 for measured in found(batches()).measured.values())
    one = found(batches()[:1])
    assert all(math.isnan(measured.error) for measured in one.measured.values())
    assert one.validity is None


def test_what_is_refused(trained: Tagger) -> None:
    with pytest.raises(UsageError, match="0 checks or more"):
        nas_attn.predict_front(trained, batches(), loss_of, checks=-1)
    with pytest.raises(UsageError, match="there are no data"):
        nas_attn.predict_front(trained, [], loss_of)
    with pytest.raises(UsageError, match="needs data and a loss"):
        nas_attn.predict_front(trained, batches())  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="has a loss of its own"):
        nas_attn.predict_front("demo", None, loss_of)  # type: ignore[call-overload]
    with pytest.raises(ConfigError):
        nas_attn.predict_front(trained, batches(), loss_of, "no_such_space")
    with pytest.raises(ConfigError, match=r"schemes\.multi_heads"):
        nas_attn.predict_front(trained, batches(), loss_of, {"schemes": {"multi_heads": {}}})
    with pytest.raises(NasAttnError, match="votes on heads"):
        nas_attn.predict_front(trained, batches(), loss_of, "inherited_voted_per_layer")
    with pytest.raises(PlanError, match="no attention"):
        nas_attn.predict_front(nn.Linear(2, 2), batches(), lambda m, b: m(torch.ones(1, 2)))
    with pytest.raises(NasAttnError, match="is no number"):
        nas_attn.predict_front(trained, batches(), lambda m, b: loss_of(m, b) * math.nan, SPACE)
    lone = {"schemes": {"multi_head": {}, "head_embedding_add": {}}}
    with pytest.raises(NasAttnError, match="no choice of the space"):
        nas_attn.predict_front(trained, batches(), loss_of, lone)


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
