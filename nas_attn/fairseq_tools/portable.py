"""What is given away names no place of the machine that it was made on."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from nas_attn.errors import NasAttnError

DATA, PLAN = "data", "attention_plan"
PLACES = ("_dir", "_path", "_file", "logdir")
"""How names of settings end whose values are places."""
NAMES = frozenset(
    {
        "aim_repo",
        "aim_run_hash",
        "continue_once",
        "distributed_init_method",
        "ema_seed_model",
        "finetune_from_model",
        "teacher",
        "wandb_project",
    }
)
"""Settings that name files, services or hosts without saying so."""

TRAINER = 2
"""Field of a SentencePiece model that says how it was trained."""
TRAINED_FROM = (1, 2, 54)
"""Fields therein that are paths: the text, where the model went, and pieces to begin with."""


def make_portable(state: dict[str, Any]) -> None:
    """Take every place out of a checkpoint's settings, in place.

    A setting that names a place, and any text with a slash or a tilde at its beginning, gets
    fairseq's own default, or None where fairseq has none; the data set is the folder that the
    checkpoint lies in. Nothing of it is needed to load the model: weights that training began
    with, such as those of `encoder_embed_path`, are in the checkpoint.

    Args:
        state: State of a fairseq checkpoint.
    """
    defaults = _defaults(state["cfg"])
    for name in ("cfg", "args"):
        _clear(state.get(name), defaults)


def _clear(settings: Any, defaults: Mapping[str, Any]) -> None:
    fields = vars(settings) if isinstance(settings, Namespace) else settings
    if isinstance(fields, list):
        for index, value in enumerate(fields):
            if isinstance(value, str) and _names_a_place("", value):
                fields[index] = None
            _clear(value, defaults)
    if not isinstance(fields, dict):
        return
    for name, value in fields.items():
        if not isinstance(value, str):
            _clear(value, defaults)
        elif name == DATA:
            fields[name] = "."
        elif name != PLAN and _names_a_place(name, value):
            fields[name] = defaults.get(name)


def _names_a_place(name: str, value: str) -> bool:
    is_place = name.endswith(PLACES) or name in NAMES
    return is_place or "/" in value or "\\" in value or value.startswith("~")


def _defaults(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """fairseq's defaults of all settings that it knows itself, by name."""
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    task = cfg.get("task")
    fields = vars(task) if isinstance(task, Namespace) else task or {}
    sections = [getattr(FairseqConfig, field.name) for field in dataclasses.fields(FairseqConfig)]
    sections.append(TASK_DATACLASS_REGISTRY.get(fields.get("_name")))
    return {
        field.name: field.default
        for section in sections
        if dataclasses.is_dataclass(section)
        for field in dataclasses.fields(section)
        if field.default is None or _is_value(field.default)
    }


def _is_value(default: Any) -> bool:
    """Whether a default is text, no reference to another setting and no gap."""
    return isinstance(default, str) and not default.startswith(("${", "???"))


def without_paths(model: bytes) -> bytes:
    """A SentencePiece model that does not say from which files it was trained.

    Args:
        model: SentencePiece model as its file holds it: a protocol buffer.

    Raises:
        NasAttnError: it is no such thing.
    """
    try:
        made = b""
        for number, start, body, end in _fields(model):
            if number != TRAINER:
                made += model[start:end]
                continue
            spec = model[body:end]
            kept = [spec[s:e] for field, s, _, e in _fields(spec) if field not in TRAINED_FROM]
            inner = b"".join(kept)
            made += _varint(TRAINER << 3 | 2) + _varint(len(inner)) + inner
    except (IndexError, ValueError):
        raise NasAttnError("this is no SentencePiece model") from None
    return made


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a protocol buffer: number, and where they, their values and they end."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind = tag & 7
        body = at
        if kind == 0:
            _, at = _read_varint(message, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, body = _read_varint(message, at)
            at = body + size
        else:
            raise ValueError(f"there is no wire type {kind}")
        if at > len(message):
            raise ValueError("the message ends in a field")
        yield tag >> 3, start, body, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
