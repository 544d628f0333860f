"""fairseq's checkpoints: read without running anything, written whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_attn.errors import NasAttnError, UsageError
from nas_attn.literals import code_in
from nas_attn.trials.layout import checkpoint_is_whole

logger = logging.getLogger(__name__)

SHARDS = ("fsdp_metadata", "shard_metadata")
"""What is in a checkpoint that holds only a part of a model's weights."""
AVERAGED = ("ema", "ema_fp32_params")
"""Of `extra_state`: running averages of the weights."""
OLD_DEFAULTS: dict[str, Any] = {
    "best_loss": None,
    "optimizer": None,
    "epoch": 1,
    "batch_offset": 0,
    "val_loss": None,
}
"""What fairseq takes for granted in checkpoints of its oldest form."""

EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")
"""Files that a training began with; the weights are in its checkpoint, so nothing opens them."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a fairseq checkpoint of any age; only plain data is unpickled.

    Returns:
        Its state as fairseq-train writes it now: `cfg` a dictionary of plain values whose `model`
        is a namespace or, of models that have a dataclass of arguments, a dictionary; `model` the
        weights by name; `args` None.

    Raises:
        UsageError: it is no checkpoint of a whole model, it is damaged, or it holds something
            that could run code.
    """
    import fairseq_plugin  # noqa: F401  says which types are plain data

    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how old files were written
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UsageError(f"{path} is no checkpoint that can be read: {_why(error)}") from None
    if not isinstance(state, dict) or "model" not in state:
        raise UsageError(f"{path} is no checkpoint of fairseq-train: it has no entry 'model'")
    _check_weights(path, state)
    if state.get("args") is not None:
        _upgrade(path, state)
    state["cfg"], state["args"] = _plain(path, state.get("cfg")), None
    arguments = state["cfg"]["model"]
    check_arguments(path, arguments)
    if isinstance(arguments, dict) and "attention_plan" in arguments:
        # fairseq-hydra-train writes a mapping, fairseq-train a namespace.
        arguments = Namespace(**arguments | {"arch": arguments.get("_name")})
        state["cfg"]["model"] = arguments
    if not isinstance(state.get("extra_state"), dict):
        state["extra_state"] = {}
    if not state.get("optimizer_history"):  # without which fairseq loads nothing
        state["optimizer_history"] = [
            {"optimizer_name": "", "lr_scheduler_state": {"best": None}, "num_updates": 0}
        ]
    return state


def without_training(path: Path, state: dict[str, Any]) -> None:
    """Drop from a checkpoint, whose model changes, what belongs to the model as it was.

    Args:
        path: Path of the checkpoint, for the message.
        state: State of the checkpoint, changed in place: the optimiser's state and averages of
            weights go.
    """
    state["last_optimizer_state"] = None
    extra = dict(state["extra_state"])
    averaged = [name for name in AVERAGED if extra.pop(name, None) is not None]
    state["extra_state"] = extra
    if averaged:
        logger.warning(
            "the running average of weights (EMA) in %s is left out: it is of the model as it was; "
            "what was taken over are the weights themselves",
            path,
        )


def check_out(out: Path, *sources: Path) -> None:
    """See, before any work, that a checkpoint can be written.

    Args:
        out: Path where it is to go; its folder is made.
        sources: Files that it must not replace.

    Raises:
        UsageError: it cannot.
    """
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file")
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise UsageError(f"{out} is the checkpoint itself: name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(out)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None


def save_checkpoint(state: dict[str, Any], out: Path) -> None:
    """Write a checkpoint; a file that is there already is replaced once the new one is whole.

    Raises:
        NasAttnError: it cannot be written.
    """
    partial = _partial(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(out)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # torch's own kind, if the disk is full
            raise NasAttnError(f"{out} cannot be written: {error}") from None
        raise


def _partial(out: Path) -> Path:
    """Beside the file, of this process alone."""
    return out.with_name(f".{out.name[:100]}.{os.getpid()}.partial")


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise UsageError(f"there is no checkpoint {path}")
        if not path.is_file():
            raise UsageError(f"{path} is no file")
        with path.open("rb") as file:
            start = file.read(4)
        if not start:
            raise UsageError(f"{path} is empty")
        # What torch writes is a zip file with a checksum of every part; versions before 1.6 wrote
        # none, and nothing tells whether such a file is whole.
        if start[:2] == b"PK" and not checkpoint_is_whole(path):
            raise UsageError(
                f"{path} is no checkpoint that can be read: it is truncated or damaged (a part "
                "does not match its checksum); copy it again, or take another of the training"
            )
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _why(error: Exception) -> str:
    """What torch says of a file, in a line; its advice to unpickle anything is left out."""
    text = str(error)
    foreign = re.search(r"GLOBAL ([\w.]+)|`([\w.]+)`\] or the", text)
    if foreign:
        name = foreign[1] or foreign[2]
        return f"it holds {name}, but only plain data are read, since others could run code"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _check_weights(path: Path, state: dict[Any, Any]) -> None:
    if any(name in state for name in SHARDS):
        raise UsageError(
            f"{path} is one shard of a model, and only a checkpoint of all weights can be read: "
            "put the shards together first"
        )
    weights = state["model"]
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError(f"{path} is no checkpoint of fairseq-train: 'model' holds no weights")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UsageError(
                f"{path} is no checkpoint of fairseq-train: of the weights, {name!r} is no tensor "
                "with a name in text"
            )


def _upgrade(path: Path, state: dict[str, Any]) -> None:
    """Turn the `args` of older fairseq into `cfg`, as fairseq itself does when it loads them."""
    from fairseq import checkpoint_utils

    if not isinstance(state["args"], Namespace):
        raise UsageError(f"{path} is no checkpoint of fairseq-train: 'args' is no namespace")
    check_arguments(path, state["args"])
    old = dict(OLD_DEFAULTS)
    if "extra_state" in state:
        for name in ("epoch", "batch_offset", "val_loss"):
            del old[name]
    for name, value in old.items():
        state.setdefault(name, value)
    if not state.get("optimizer_history"):
        state.pop("optimizer_history", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hydra's, about how fairseq calls it
            upgraded = checkpoint_utils._upgrade_state_dict(state)
    except Exception as error:  # fairseq raises many kinds
        raise UsageError(
            f"fairseq cannot read the arguments of {path}: {type(error).__name__}: {_why(error)}"
        ) from None
    state.update(upgraded)


def _plain(path: Path, cfg: Any) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(cfg, DictConfig):
        try:
            cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        except Exception as error:  # omegaconf raises many kinds
            raise UsageError(f"the arguments of {path} cannot be read: {_why(error)}") from None
    if not isinstance(cfg, dict):
        raise UsageError(
            f"{path} is no checkpoint of fairseq-train: it has neither 'cfg' nor 'args', so "
            "nothing says what its weights are"
        )
    for name in ("model", "task"):
        section = cfg.get(name)
        if not isinstance(section, (dict, Namespace)):
            raise UsageError(f"{path} does not say what its {name} is (cfg.{name} is missing)")
    return cfg


def check_arguments(path: Path, arguments: Namespace | dict[str, Any]) -> None:
    """See that arguments of a model are plain values, and drop files that they would have opened.

    Args:
        path: Path of the checkpoint, for the message.
        arguments: The arguments, changed in place.

    Raises:
        UsageError: fairseq would run one of them.
    """
    known = arguments if isinstance(arguments, dict) else vars(arguments)
    name = code_in(known)
    if name is not None:
        raise UsageError(
            f"{path}: the argument {name} must be a plain value, but is {known[name][:100]!r}, "
            "which fairseq would run"
        )
    known.update({name: None for name in EMBEDDING_FILES if known.get(name) is not None})
