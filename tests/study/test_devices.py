"""Flags that ask for other GPUs than a trial gets are refused, and what is read only is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas_attn.errors import ConfigError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.devices import count_processes
from nas_attn.study.loading import load_study
from tests.helpers.studies import write

GROUPED = {
    "space": {"schemes": {"multi_head": {}, "grouped_head": {"num_groups": [2]}}},
    "training/arguments/criterion": "grouped_label_smoothed_cross_entropy",
}
FAULTS: list[tuple[float, dict[str, Any], str, str]] = [
    (0, {"fp16": True}, "fp16", "needs a GPU, .*: set resources.gpus"),
    (0, {"amp": True}, "amp", "needs a GPU"),
    (0, {"memory_efficient_fp16": True}, "memory_efficient_fp16", "needs a GPU"),
    (0, {"cpu": True, "amp": True}, "amp", "needs a GPU"),
    (2, {"cpu": True}, "cpu", "resources.gpus gives each trial 2: set it to 0"),
    (1, {"fp16": True, "amp": True}, "amp", "another way of the same as fp16"),
    (2, {"encoder-layerdrop": 0.1}, "encoder-layerdrop", "set .*ddp-backend to legacy_ddp"),
    (2, {"decoder-layerdrop": 0.1, "ddp-backend": "c10d"}, "decoder-layerdrop", "backend c10d"),
]
FINE: list[tuple[float, dict[str, Any]]] = [
    (0, {"cpu": True}),
    (0.5, {"fp16": True}),
    (2, {"amp": True}),
    (1, {"encoder-layerdrop": 0.1}),
    (2, {"encoder-layerdrop": 0.1, "ddp-backend": "legacy_ddp"}),
    (2, {"encoder-layerdrop": 0.1, "find-unused-parameters": True}),
    (2, {"encoder-layerdrop": 0}),
]


def changed(gpus: float, arguments: dict[str, Any]) -> dict[str, Any]:
    named = {f"training/arguments/{name}": value for name, value in arguments.items()}
    return {"resources": {"gpus": gpus}, **named}


@pytest.mark.parametrize(("gpus", "arguments", "flag", "message"), FAULTS)
def test_flags_that_do_not_go_with_the_gpus(
    gpus: float,
    arguments: dict[str, Any],
    flag: str,
    message: str,
    tmp_path: Path,
    tiny_translation: PreparedData,
) -> None:
    path = str(write(tmp_path, tiny_translation.folder, changed(gpus, arguments)))
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(path)
    assert [fault.key for fault in caught.value.faults] == [f"training.arguments.{flag}"]
    load_study(path, is_read_only=True)


@pytest.mark.parametrize(("gpus", "arguments"), FINE)
def test_flags_that_go_with_the_gpus(
    gpus: float, arguments: dict[str, Any], tmp_path: Path, tiny_translation: PreparedData
) -> None:
    load_study(str(write(tmp_path, tiny_translation.folder, changed(gpus, arguments))))


def test_heads_are_not_compared_in_layers_that_are_dropped(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    """The training would end at the first batch that leaves a layer out."""
    changes = {**GROUPED, "training/arguments/encoder_layerdrop": 0.2}
    with pytest.raises(ConfigError, match="leaves layers out: set it to 0") as caught:
        load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    (fault,) = caught.value.faults
    assert "training.arguments.encoder_layerdrop" in fault.message
    decoder = {"multi_head": {}}
    changes["space"] = {**GROUPED["space"], "sites": {"encoder_self": decoder}}
    load_study(str(write(tmp_path, tiny_translation.folder, changes)))


def test_adaptive_loss_wants_another_backend(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    adaptive = {"criterion": "adaptive_loss", "adaptive-softmax-cutoff": 20}
    changes = changed(0, {**adaptive, "share-all-embeddings": False})
    changes["objectives"] = {"metric": "loss"}
    with pytest.raises(ConfigError, match="adaptive_loss refuses pytorch_ddp: set it to legacy"):
        load_study(str(write(tmp_path, tiny_translation.folder, changes)))
    changes["training/arguments/ddp-backend"] = "legacy_ddp"
    load_study(str(write(tmp_path, tiny_translation.folder, changes)))


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (0.25, 1), (1, 1), (2, 2), (8, 8)])
def test_processes(gpus: float, processes: int) -> None:
    assert count_processes(gpus) == processes
