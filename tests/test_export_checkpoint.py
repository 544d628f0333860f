"""`nas-attn export` of a checkpoint of no study."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.same_tokens import Probe
from tests.helpers.checkpoints import state_of
from tests.helpers.cli import invoke

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq's own modules


def test_a_checkpoint_is_exported_with_its_data_set(
    tiny_translation: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "beam", 1)  # of models that never learned to end
    monkeypatch.setattr(Probe, "most_tokens", 6)
    path, out = tmp_path / "stock.pt", tmp_path / "model"
    torch.save(state_of(tiny_translation.folder), path)
    with pytest.raises(UsageError, match="with its data set: give --data DIR"):
        invoke("export", str(path), "--out", str(out))
    with pytest.raises(UsageError, match="a study has a data set"):
        invoke("export", "demo", "--out", str(out), "--data", "anything")
    arguments = ["--data", str(tiny_translation.folder), "--out", str(out)]
    text = invoke("export", str(path), *arguments, "--format", "safetensors")
    assert "50 of 50 sentences: same tokens" in text
    card = (out / "README.md").read_text()
    assert "license: unknown\nlanguage:\n- src\n- tgt\n" in card
    assert "Checked against the model in fairseq: 50 of 50 sentences: same tokens." in card
    names = {item.name for item in out.iterdir()}
    assert names >= {"model.safetensors", "config.json", "plan.json", "dict.src.txt"}
    for item in out.iterdir():
        assert str(tiny_translation.folder).encode() not in item.read_bytes(), item.name
    with pytest.raises(UsageError, match="is not empty"):
        invoke("export", str(path), *arguments)
    arguments[-1] = str(tmp_path / "plugin")
    invoke("export", str(path), *arguments)
    card = (tmp_path / "plugin" / "README.md").read_text()
    assert "| OMP_NUM_THREADS=1 fairseq-interactive . " in card
