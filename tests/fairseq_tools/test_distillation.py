"""Distillation of a fairseq model's converted modules: in conversions, and in measurements."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nas_attn.cli.main import app
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools import distillation, measure
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.convert import validation_loss
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.distillation import distillation_data
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.checkpoints import State

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq and hydra

of = AttentionChoice.of
PLAN = AttentionPlan.of(
    {"encoder_self": of("head_embedding_add"), "encoder_decoder": of("reduced_key", key_dim=8)}
)


@dataclass
class Made:
    data: Path
    checkpoint: Path
    folder: Path

    def convert(self, name: str, *more: str) -> str:
        arguments = ["convert", str(self.checkpoint), "--plan", PLAN.dumps()]
        out = ["--out", str(self.folder / name)]
        done = CliRunner().invoke(app, [*arguments, *out, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def made(stock: State, tiny_translation: PreparedData, tmp_path: Path) -> Made:
    save_checkpoint(stock, tmp_path / "stock.pt")
    return Made(tiny_translation.folder, tmp_path / "stock.pt", tmp_path)


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("it was trained before")


def test_a_scheme_that_cannot_inherit_does_and_measures_the_same(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NasAttnError, match="--distil needs --calibrate DATA"):
        made.convert("out.pt", "--distil")
    calibrate = ("--calibrate", str(made.data))
    with pytest.raises(UsageError, match=r"cannot inherit trained heads: .* distil it"):
        made.convert("out.pt", *calibrate)
    text = made.convert("out.pt", *calibrate, "--distil")
    assert re.search(r"distilled: 1 modules in \d+\.\d s", text), "the exact one is left"
    loss = validation_loss(load_trained(made.folder / "out.pt"), made.data)
    calibration = made.folder / "measured" / "calibration.pt"
    measure.calibrate(made.checkpoint, made.data, calibration, distil=True)
    command = measure.measure_command(made.checkpoint, PLAN, made.data, calibration, distil=True)
    report = made.folder / "report.jsonl"
    monkeypatch.setenv("NAS_ATTN_REPORT", str(report))
    measure.main(command[1:])
    monkeypatch.setattr("nas_attn.fairseq_tools.convert.distil_module", never)
    measure.main(command[1:])  # with the module that was kept
    lines = [json.loads(line)["metrics"] for line in report.read_text().splitlines()]
    first, second = lines
    assert first["nll_loss"] == second["nll_loss"] == pytest.approx(loss, abs=1e-6)
    (kept,) = (calibration.parent / "modules").iterdir()
    assert kept.name.startswith("encoder_self.0-head_embedding_add-")
    distilled = torch.load(kept, weights_only=True)["distilled"]
    assert distilled["after"] < 0.9 * distilled["before"]


def test_files_of_earlier_versions_hold_nothing_to_distil_on(made: Made) -> None:
    calibration = made.folder / "calibration.pt"
    measure.calibrate(made.checkpoint, made.data, calibration)
    state = torch.load(calibration, weights_only=True)
    assert set(state) == {"calls", "losses", "outputs", "scores"}
    found = measure.load_calibration(calibration)
    assert found.distillation == {}
    command = measure.measure_command(made.checkpoint, PLAN, made.data, calibration, distil=True)
    with pytest.raises(SystemExit, match="holds nothing to distil on"):
        measure.main(command[1:])


def test_what_is_recorded(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are held out, the metric is that of gradients, and wide models take less room."""
    trained = load_trained(made.checkpoint)
    state = torch.random.get_rng_state()
    found = distillation_data(trained, made.data)
    again = distillation_data(trained, made.data)
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(found) == set(trained.attention())
    for place, data in found.items():
        assert data.metric is not None
        assert torch.equal(data.metric, again[place].metric)
        assert float(torch.linalg.eigvalsh(data.metric)[-1]) > 0.0
        taught, asked = (
            sum(int(call.valid_queries.sum()) for call in calls)
            for calls in (data.calls, data.held_out)
        )
        assert 0.05 < asked / taught < 0.4
    assert not any(parameter.grad is not None for parameter in trained.model.parameters())
    monkeypatch.setattr(distillation, "MAX_BYTES", 1)
    monkeypatch.setattr(distillation, "BATCH_TOKENS", 64)
    few = distillation_data(trained, made.data)
    size = sum(call.query.numel() for call in few["encoder_self.0"].calls)
    assert size < sum(call.query.numel() for call in found["encoder_self.0"].calls)


def test_one_sequence_is_not_enough() -> None:
    with pytest.raises(UsageError, match="two sequences at least"):
        distillation._split(distillation.Batches(None, [[0]]))
    lines: list[Any] = [list(range(5)), [5]]
    split = distillation._split(distillation.Batches(None, lines)).lines
    assert sorted(line for some in split for line in some) == list(range(6))
    assert len(split) == 6
