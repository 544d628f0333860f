"""Checkpoints of fairseq's own models, also of older versions of fairseq, with the plugin."""

from __future__ import annotations

import io
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import meters
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor

from nas_attn.errors import PlanError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.models import blank_dictionary, parse_architecture
from tests.helpers.architectures import TINY, TINY_LM, TINY_ROBERTA

FAMILIES = [("transformer", TINY), ("transformer_lm", TINY_LM), ("roberta", TINY_ROBERTA)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fairseq's modules
        yield


def build(arch: str, args: Namespace) -> Any:
    task = Namespace(source_dictionary=blank_dictionary(30), target_dictionary=blank_dictionary(30))
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).eval()


def stock_and_ours(family: str, flags: list[str], scheme: str = "multi_head") -> tuple[Any, Any]:
    args = parse_architecture(f"{scheme}_{family}", [*flags, "--dropout=0"])
    ours = build(f"{scheme}_{family}", args)
    if family == "transformer_lm":
        ARCH_CONFIG_REGISTRY["transformer_lm_gpt2_tiny"](args)
    stock = build(family, args)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stock, ours


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix, as fairseq had them before 0.9."""
    joined = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{side}_proj.")] for side in "qkv"]
            joined[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            joined[name] = tensor
    return joined


@pytest.mark.parametrize("names", [dict, old_names])
@pytest.mark.parametrize(("family", "flags"), FAMILIES)
def test_multi_head_takes_stock_weights(
    family: str, flags: list[str], names: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stock, ours = stock_and_ours(family, flags)
    ours.load_state_dict(names(stock.state_dict()), strict=True)
    assert sum("--reset-optimizer" in text for text in caplog.messages) == 1
    tokens = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1]])
    inputs = (tokens,) if family != "transformer" else (tokens, torch.tensor([4, 3]), tokens)
    with torch.no_grad():
        expected, found = (model(*inputs)[0] for model in (stock, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours.load_state_dict(ours.state_dict(), strict=True)  # its own names, as before
    assert sum("--reset-optimizer" in text for text in caplog.messages) == 1


@pytest.mark.parametrize(("family", "flags"), FAMILIES)
def test_other_schemes_say_how_to_convert(family: str, flags: list[str]) -> None:
    stock, ours = stock_and_ours(family, flags, "multi_query")
    with pytest.raises(PlanError, match="nas-attn convert CHECKPOINT --plan"):
        ours.load_state_dict(stock.state_dict(), strict=True)


def test_a_checkpoint_of_an_older_fairseq_loads(
    tiny_translation: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments without a configuration, meters, and numbers that numpy 1 wrote."""
    data = str(tiny_translation.folder)
    words = [data, "--task=translation", "--arch=transformer", *TINY]
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    stock = task.build_model(Namespace(**vars(args)))
    for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"):
        monkeypatch.setattr(getattr(meters, name), "__module__", "fairseq.meters")
    state = {
        "args": args,
        "model": old_names(stock.state_dict()),
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "O", "num_updates": 7,
             "lr_scheduler_state": {"best": np.float64(3.5)}}
        ],
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 7},
            "train_meters": OrderedDict(
                train_loss=meters.AverageMeter(), ups=meters.TimeMeter(),
                train_wall=meters.StopwatchMeter(),
            ),
        },
    }  # fmt: skip
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    raw = file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\nscalar" in raw
    path = tmp_path / "old.pt"
    path.write_bytes(raw)
    loaded = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert loaded["optimizer_history"][-1]["lr_scheduler_state"]["best"] == 3.5
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": data})
    assert type(models[0]).__name__ == "TransformerModel"
    words[2] = "--arch=multi_head_transformer"
    ours = task.build_model(options.parse_args_and_arch(options.get_training_parser(), words))
    ours.load_state_dict(loaded["model"], strict=True)
    tokens = torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        outputs = [m.eval()(tokens, torch.tensor([4]), tokens)[0] for m in (models[0], ours)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
