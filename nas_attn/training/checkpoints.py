"""fairseq's checkpoints: read without running anything, written whole or not at all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from nas_attn.errors import NasAttnError

EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")
"""Files that a training began with; the weights are in its checkpoint, so nothing opens them."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a fairseq checkpoint; only plain data is unpickled.

    Raises:
        NasAttnError: it is no checkpoint of fairseq-train.
    """
    import fairseq_plugin  # noqa: F401  says which types are plain data

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise NasAttnError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch raises many kinds
        raise NasAttnError(f"{path} is no checkpoint that can be read: {error}") from None
    if not isinstance(state, dict) or not {"model", "cfg"} <= state.keys():
        raise NasAttnError(f"{path} is no checkpoint of fairseq-train")
    arguments = state["cfg"].get("model") if isinstance(state["cfg"], dict) else None
    if isinstance(arguments, dict) and "attention_plan" in arguments:
        # fairseq-hydra-train writes a mapping, fairseq-train a namespace.
        arguments = argparse.Namespace(**arguments | {"arch": arguments.get("_name")})
        state["cfg"]["model"] = arguments
    for name in EMBEDDING_FILES:
        if getattr(arguments, name, None) is not None:
            setattr(arguments, name, None)
    return state


def save_checkpoint(state: dict[str, Any], out: Path) -> None:
    """Write a checkpoint; a file that is there already is replaced once the new one is whole.

    Raises:
        NasAttnError: it cannot be written.
    """
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(out)
    except (OSError, RuntimeError) as error:  # torch's own kind, if the disk is full
        partial.unlink(missing_ok=True)
        raise NasAttnError(f"{out} cannot be written: {error}") from None
