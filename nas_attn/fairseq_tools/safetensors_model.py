"""A model as safetensors and JSON: nothing in it is unpickled, so nothing in it can run code."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas_attn._imports import require_extra
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.checkpoints import check_arguments
from nas_attn.fairseq_tools.trained import TrainedModel, trained_from

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MOST_CONFIG_BYTES = 1_000_000
FORMAT = "nas-attn 1"


def write_safetensors(trained: TrainedModel, folder: Path) -> None:
    """Write weights (model.safetensors), and the plan and all arguments (config.json).

    A tensor that stands in the model under several names, such as a shared embedding, is stored
    once; config.json says which.

    Args:
        trained: Model of the plugin.
        folder: Folder that is there.

    Raises:
        NasAttnError: The arguments are no plain values.
    """
    require_extra("export", "safetensors")
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    shared = {}
    for name, tensor in trained.model.state_dict().items():
        place = tensor.data_ptr(), tuple(tensor.shape)
        if tensor.numel() and place in first:
            shared[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor.contiguous()
    config = {
        "format": FORMAT,
        "plan": trained.plan.to_json(),
        "model": vars(trained.arguments),
        "task": trained.state["cfg"]["task"],
        "shared": shared,
    }
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise NasAttnError(f"the arguments of the model cannot be written: {error}") from None
    save_file(kept, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> nn.Module:
    """Load an export in safetensors as the fairseq model that it is, in evaluation mode.

    Args:
        folder: Folder of `nas-attn export --format safetensors`.

    Raises:
        UsageError: It is no such folder, is damaged, or does not hold what its arguments say.
    """
    return read_safetensors(Path(folder)).model


def read_safetensors(folder: Path) -> TrainedModel:
    """Load an export in safetensors with its plan and arguments.

    Raises:
        UsageError: It is no such folder, is damaged, or does not hold what its arguments say.
    """
    require_extra("export", "safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _config(folder / CONFIG)
    try:
        weights = load_file(str(folder / WEIGHTS))
        weights |= {name: weights[other] for name, other in config["shared"].items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise UsageError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    cfg = {"model": Namespace(**config["model"]), "task": config["task"]}
    check_arguments(folder / CONFIG, cfg["model"])
    return trained_from({"cfg": cfg, "model": weights}, folder)


def _config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MOST_CONFIG_BYTES + 1))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    parts = ("model", "task", "shared")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UsageError(f"{path} is not of an export by nas-attn in safetensors")
    if not all(isinstance(config.get(part), dict) for part in parts):
        raise UsageError(f"{path} lacks {', '.join(parts)}")
    return config
