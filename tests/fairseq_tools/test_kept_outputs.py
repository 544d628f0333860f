"""Layers that a conversion leaves as they are: not computed again, and no bit is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas_attn.fairseq_tools import kept_outputs, measure
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.convert import (
    calibration_calls,
    convert_trained,
    validation_losses,
)
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.kept_outputs import KeptOutputs, Outputs, layers_of, recording
from nas_attn.fairseq_tools.measure import calibrate, load_calibration
from nas_attn.fairseq_tools.trained import TrainedModel, load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan
from tests.helpers.checkpoints import state_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq and hydra

LAYERS = 3
SIDE = {"embed-dim": 8, "ffn-embed-dim": 8, "attention-heads": 2, "layers": LAYERS}
FLAGS = {
    side: [f"--{side}-{name}={value}" for name, value in SIDE.items()]
    for side in ("encoder", "decoder")
}
MODELS: dict[str, dict[str, Any]] = {
    "translation": {"flags": [*FLAGS["encoder"], *FLAGS["decoder"]]},
    "pre-norm": {
        "flags": [
            *FLAGS["encoder"],
            *FLAGS["decoder"],
            *("--encoder-normalize-before", "--decoder-normalize-before"),
        ]
    },
    "one for both": {
        "flags": [
            *FLAGS["encoder"],
            *FLAGS["decoder"],
            *("--no-cross-attention", "--cross-self-attention"),
        ]
    },
    "language": {
        "arch": "transformer_lm",
        "task": "language_modeling",
        "flags": [*FLAGS["decoder"], "--tokens-per-sample=32"],
    },
    "masked": {
        "arch": "roberta",
        "task": "masked_lm",
        "flags": [*FLAGS["encoder"], "--tokens-per-sample=32", "--sample-break-mode=eos"],
    },
}


@pytest.fixture(params=list(MODELS))
def checkpoint(
    request: pytest.FixtureRequest,
    tiny_translation: PreparedData,
    tiny_language: PreparedData,
    tmp_path: Path,
) -> tuple[Path, Path]:
    """A checkpoint of three layers a side, and its data."""
    kind: str = request.param
    data = tiny_language if kind in ("language", "masked") else tiny_translation
    save_checkpoint(state_of(data.folder, **MODELS[kind]), tmp_path / "trained.pt")
    return tmp_path / "trained.pt", data.folder


def outputs_of(trained: TrainedModel, data: Path) -> Outputs:
    outputs: Outputs = {}
    with recording(trained, outputs):
        validation_losses(trained, data)
    return outputs


def changed(places: list[str], trained: TrainedModel) -> AttentionPlan:
    counts = trained.layers()
    return AttentionPlan.of(
        {
            site: [
                AttentionChoice.of("multi_query" if f"{site}.{n}" in places else "multi_head")
                for n in range(count)
            ]
            for site, count in counts.items()
        }
    )


class Calls:
    """Counts how often the layers of a model are called."""

    def __init__(self, model: nn.Module) -> None:
        self.counts: dict[str, int] = {}
        for stack, names in layers_of(model).items():
            for layer, name in enumerate(names):
                place = f"{stack}.{layer}"
                self.counts[place] = 0
                model.get_submodule(name).register_forward_hook(
                    lambda *_, place=place: self.counts.update({place: self.counts[place] + 1})
                )


def test_every_change_loses_the_same_by_less_work(checkpoint: tuple[Path, Path]) -> None:
    """Of one module at a time, and of several."""
    path, data = checkpoint
    trained = load_trained(path)
    outputs, calls = outputs_of(trained, data), calibration_calls(trained, data)
    is_last = "decoder" if "decoder" in layers_of(trained.model) else "encoder"
    assert f"{is_last}.{LAYERS - 1}" not in outputs, "nothing comes after it"
    singles = [[f"{site}.{layer}"] for site, layer in trained.modules]
    upper = [place for (place,) in singles if not place.endswith(".0")]
    for places in (*singles, upper, [place for (place,) in singles]):
        made = load_trained(path)
        converted = convert_trained(made, changed(places, made), calls)
        assert sorted(module.place for module in converted.modules) == sorted(places)
        whole = validation_losses(made, data)
        seen = Calls(made.model)
        kept = KeptOutputs(outputs, places)
        assert validation_losses(made, data, kept) == whole
        stacks = layers_of(made.model)
        first = {
            "encoder": min([int(p[-1]) for p in places if "encoder_self" in p], default=LAYERS),
            "decoder": min([int(p[-1]) for p in places if "encoder_self" not in p], default=LAYERS),
        }
        if first["encoder"] < LAYERS:
            first["decoder"] = 0
        for stack in stacks:
            for layer in range(LAYERS):
                is_called = seen.counts[f"{stack}.{layer}"] > 0
                assert is_called == (layer >= first[stack]), (places, stack, layer)
        assert validation_losses(made, data) == whole, "the layers are back in their places"


def test_a_calibration_holds_what_was_kept(tmp_path: Path, tiny_translation: PreparedData) -> None:
    """With none, as earlier versions wrote it, everything is computed."""
    path, data = tmp_path / "trained.pt", tiny_translation.folder
    save_checkpoint(state_of(data, **MODELS["translation"]), path)
    calibrate(path, data, tmp_path / "calibration.pt")
    found = load_calibration(tmp_path / "calibration.pt")
    assert set(found.outputs) == {"encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"}
    assert {len(of_place) for of_place in found.outputs.values()} == {
        len(found.outputs["encoder.0"])
    }
    assert KeptOutputs(found.outputs, ["decoder_self.2"]).until("encoder", LAYERS) == LAYERS
    assert KeptOutputs({}, ["decoder_self.2"]).until("encoder", LAYERS) == 0


def test_the_command_reports_the_same_with_and_without(
    tmp_path: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions' calibrations hold neither outputs nor predictions."""
    path, data = tmp_path / "trained.pt", tiny_translation.folder
    save_checkpoint(state_of(data, **MODELS["translation"]), path)
    calibrate(path, data, tmp_path / "new.pt")
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    save_checkpoint({name: state[name] for name in ("calls", "losses")}, tmp_path / "old.pt")
    plan = changed(["decoder_self.1", "encoder_decoder.2"], load_trained(path))
    reported = {}
    for name in ("new", "old"):
        monkeypatch.setenv("NAS_ATTN_REPORT", str(tmp_path / f"{name}.jsonl"))
        measure.main(
            [
                *("--checkpoint", str(path), "--plan", plan.dumps(), "--data", str(data)),
                *("--calibration", str(tmp_path / f"{name}.pt")),
            ]
        )
        (line,) = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        reported[name] = json.loads(line)["metrics"]
    new = reported["new"]
    assert new.pop(measure.DIVERGENCE) > 0 < new.pop(measure.DIVERGENCE_ERROR)
    assert new == reported["old"]


@pytest.mark.parametrize("room", [0, 10_000, 30_000, 60_000])
def test_with_less_room_more_is_computed(
    room: int, tmp_path: Path, tiny_translation: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "trained.pt", tiny_translation.folder
    save_checkpoint(state_of(data, **MODELS["translation"]), path)
    trained = load_trained(path)
    whole = outputs_of(trained, data)

    def size(outputs: Outputs) -> int:
        return sum(t.numel() * t.element_size() for each in outputs.values() for t in each)

    monkeypatch.setattr(kept_outputs, "MAX_BYTES", room)
    outputs = outputs_of(trained, data)
    assert size(outputs) <= room < size(whole)
    assert all(len(each) == len(whole[place]) for place, each in outputs.items())
    assert not outputs or "encoder.2" in outputs, "it serves most changes"
    calls = calibration_calls(trained, data)
    made = load_trained(path)
    convert_trained(made, changed(["encoder_decoder.2"], made), calls)
    kept = KeptOutputs(outputs, ["encoder_decoder.2"])
    assert validation_losses(made, data, kept) == validation_losses(made, data)
    assert torch.equal(whole["encoder.2"][0], outputs.get("encoder.2", whole["encoder.2"])[0])
