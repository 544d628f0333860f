"""Checkpoints of all kinds: converted right or refused in words, by all commands that read one."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.convert import convert_checkpoint
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.prune import load_checkpoint, prune_checkpoint
from nas_attn.plan import AttentionPlan
from tests.helpers.checkpoints import (
    Change,
    State,
    as_fairseq,
    copied,
    of,
    outputs,
    refused_by_all,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq's own modules

# Files that are no checkpoints, or damaged: how they are written, and what is said of them.


def _damaged(path: Path, state: State) -> None:
    torch.save(state, path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    for offset in (200, 300, 400):
        raw[largest.header_offset + offset] ^= 4
    path.write_bytes(bytes(raw))


def _zip(path: Path, state: State) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch bombed",)


def _bomb(path: Path, state: State) -> None:
    torch.save({"model": _Bomb(), "cfg": {}}, path, pickle_module=pickle)


def _half(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-3000])


FILES: dict[str, tuple[Callable[[Path, State], object], str]] = {
    "missing": (lambda path, _: None, "there is no checkpoint"),
    "empty": (lambda path, _: path.write_bytes(b""), "is empty"),
    "text": (lambda path, _: path.write_text("{}"), "is no checkpoint that can be read"),
    "noise": (lambda path, _: path.write_bytes(bytes(range(256)) * 9), "no checkpoint that can"),
    "folder": (lambda path, _: path.mkdir(), "is no file"),
    "zip": (_zip, "is no checkpoint that can be read"),
    "half": (_half, "truncated or damaged"),
    "damaged": (_damaged, "truncated or damaged"),
    "bomb": (_bomb, "only plain data are read"),
    "tensor": (lambda path, _: torch.save(torch.ones(3), path), "has no entry 'model'"),
    "list": (lambda path, _: torch.save([1, {}], path), "has no entry 'model'"),
}


# Changes of a good checkpoint, and what is said of them.


def _drop(*keys: str) -> Change:
    def change(state: State) -> None:
        *way, last = keys
        for key in way:
            state = state[key]
        del state[last]

    return change


def _put(*keys_and_value: Any) -> Change:
    def change(state: State) -> None:
        *way, last, value = keys_and_value
        for key in way:
            state = vars(state[key]) if isinstance(state[key], argparse.Namespace) else state[key]
        state[last] = value

    return change


def _named(arch: str) -> Change:
    def change(state: State) -> None:
        state["cfg"]["model"].arch = state["cfg"]["model"]._name = arch

    return change


WEIGHT = "decoder.layers.0.fc1.weight"
STATES: dict[str, tuple[Change, str]] = {
    "nothing": (lambda state: state.clear(), "has no entry 'model'"),
    "no-model": (_drop("model"), "has no entry 'model'"),
    "no-arguments": (_drop("cfg"), "neither 'cfg' nor 'args'"),
    "arguments-are-text": (_put("cfg", "transformer"), "neither 'cfg' nor 'args'"),
    "old-arguments-are-text": (_put("args", "transformer"), "'args' is no namespace"),
    "old-arguments-are-none": (_put("args", argparse.Namespace()), "cannot read|does not say"),
    "old-arguments-of-nowhere": (
        _put("args", argparse.Namespace(arch="a", task="b", criterion="c")),
        "cannot read the arguments",
    ),
    "no-arguments-of-model": (_drop("cfg", "model"), "does not say what its model is"),
    "no-task": (_put("cfg", "task", None), "does not say what its task is"),
    "weights-are-a-list": (_put("model", [1]), "'model' holds no weights"),
    "no-weights": (_put("model", {}), "'model' holds no weights"),
    "weights-are-numbers": (_put("model", {"encoder": 3.0}), "is no tensor with a name in text"),
    "names-are-bytes": (_put("model", {b"encoder": torch.ones(2)}), "is no tensor with a name"),
    "keys-are-bytes": (lambda s: s.update({b"model": s.pop("model")}), "has no entry 'model'"),
    "shard": (_put("shard_metadata", {}), "is one shard of a model"),
    "no-embeddings": (
        lambda s: s.update(model={WEIGHT: s["model"][WEIGHT]}),
        "holds no embeddings of a Transformer",
    ),
    "flat-embeddings": (
        _put("model", "encoder.embed_tokens.weight", torch.tensor(1.0)),
        "does not hold the weights",
    ),
    "weight-missing": (_drop("model", WEIGHT), WEIGHT),
    "attention-missing": (_drop("model", "encoder.layers.0.self_attn.q_proj.weight"), "q_proj"),
    "weight-too-many": (_put("model", "encoder.what", torch.ones(2)), "encoder.what"),
    "weight-of-other-shape": (_put("model", WEIGHT, torch.ones(3, 3)), WEIGHT),
    "weight-is-no-number": (
        lambda s: s["model"][WEIGHT].view(-1)[:2].fill_(float("nan")),
        f"2 of the 64 weights {WEIGHT} are infinite or not a number",
    ),
    "weight-of-whole-numbers": (
        lambda s: s["model"].update({WEIGHT: s["model"][WEIGHT].to(torch.int8)}),
        f"{WEIGHT} is torch.int8, not of real numbers",
    ),
    "weight-is-complex": (
        lambda s: s["model"].update({WEIGHT: s["model"][WEIGHT] * 1j}),
        f"{WEIGHT} is torch.complex64, not of real numbers",
    ),
    "key-of-lists": (
        _put("cfg", "model", "adaptive_softmax_cutoff", "{[]: 1}"),
        "adaptive_softmax_cutoff must be a plain value",
    ),
    "lstm": (_named("lstm"), "the architecture lstm"),
    "fconv": (_named("fconv"), "the architecture fconv"),
    "wav2vec": (_put("cfg", "model", {"_name": "wav2vec2"}), "of the architecture wav2vec2"),
    "normformer": (
        _put("model", "decoder.layers.0.attn_ln.weight", torch.ones(8)),
        "is of a NormFormer",
    ),
    "quantised": (
        _put("cfg", "model", "quant_noise_pq", 0.1),
        "is of a model that cannot be taken over: .* --quant-noise-pq",
    ),
    "unnamed": (_put("cfg", "model", {}), "of the architecture None"),
    "other-width": (_put("cfg", "model", "encoder_embed_dim", 10), "does not hold the weights"),
    "width-of-text": (_put("cfg", "model", "encoder_layers", "two"), "does not hold the weights"),
    "plan-is-text": (_put("cfg", "model", "attention_plan", "multi_head"), "architecture|no JSON"),
    "code": (
        _put("cfg", "model", "adaptive_softmax_cutoff", "__import__('os').system('touch bombed')"),
        "which fairseq would run",
    ),
}  # fmt: skip

PLANS: dict[str, tuple[Any, str]] = {
    "device": ("/dev/zero", "is no JSON text"),
    "number": (3, "is no JSON text"),
    "half": ('{"encoder_self"', "not JSON"),
    "long": ("{" + " " * 200_000 + "}", "too long"),
    "site": ('{"nowhere": "multi_head"}', "the attention plan in"),
    "other": ('{"encoder_self": "single_head"}', "does not hold the weights|lack|says nothing"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_checkpoints(
    name: str,
    stock: State,
    tiny_translation: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write, match = FILES[name]
    write(tmp_path / "odd.pt", stock)
    refused_by_all(tmp_path / "odd.pt", tiny_translation.folder, match)
    with pytest.raises(UsageError, match=match):
        load_checkpoint(tmp_path / "odd.pt")
    assert not (tmp_path / "bombed").exists()


@pytest.mark.parametrize("name", STATES)
def test_states_that_are_no_model(
    name: str,
    stock: State,
    tiny_translation: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    change, match = STATES[name]
    state = copied(stock)
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    refused_by_all(tmp_path / "odd.pt", tiny_translation.folder, match)
    with pytest.raises(UsageError):
        load_checkpoint(tmp_path / "odd.pt")
    assert not (tmp_path / "bombed").exists()


@pytest.mark.parametrize("name", PLANS)
def test_plans_that_are_none(
    name: str, grouped: State, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    text, match = PLANS[name]
    state = copied(grouped)
    state["cfg"]["model"].attention_plan = text
    torch.save(state, tmp_path / "odd.pt")
    refused_by_all(tmp_path / "odd.pt", tiny_translation.folder, match)


@pytest.mark.parametrize("name", ["kept", "schedule", "q_proj.weight"])
def test_a_vote_that_does_not_fit_is_refused(name: str, grouped: State, tmp_path: Path) -> None:
    for tensor in (torch.full((3,), 7), torch.ones(1, dtype=torch.long)):
        state = copied(grouped)
        state["model"][f"encoder.layers.0.self_attn.attention.{name}"] = tensor
        torch.save(state, tmp_path / "odd.pt")
        with pytest.raises(NasAttnError):
            prune_checkpoint(tmp_path / "odd.pt", tmp_path / "out.pt")
        assert not (tmp_path / "out.pt").exists()


# Checkpoints that are odd, but good.


def _old_arguments(state: State) -> None:
    """As fairseq before 0.10 wrote them: few flat arguments, and attention in one matrix."""
    arguments = dict(vars(state["cfg"]["model"]))
    kept = ("arch", "task", "data", "source_lang", "target_lang", "max_tokens", "criterion")
    kept = (*kept, *(k for k in arguments if k.startswith(("encoder_", "decoder_", "share_"))))
    old = {name: arguments[name] for name in kept if name in arguments}
    state["args"] = argparse.Namespace(**old, optimizer="adam", lr=0.1, min_lr=1e-9)
    state["args"].max_positions = 1024
    del state["cfg"]
    weights = state["model"]
    for place in ("encoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{place}.{side}_proj.{kind}") for side in "qkv"]
            weights[f"{place}.in_proj_{kind}"] = torch.cat(parts)
    for number, name in enumerate(("self_attn_layer_norm", "final_layer_norm")):
        for kind in ("weight", "bias"):
            moved = weights.pop(f"encoder.layers.0.{name}.{kind}")
            weights[f"encoder.layers.0.layer_norms.{number}.{kind}"] = moved


def _oldest(state: State) -> None:
    _old_arguments(state)
    state |= {"best_loss": 3.0, "optimizer": None, "epoch": 2, "batch_offset": 0, "val_loss": 3.0}
    for name in ("optimizer_history", "extra_state", "last_optimizer_state", "task_state"):
        del state[name]


def _averaged(state: State) -> None:
    for name in ("last_optimizer_state", "optimizer_history", "extra_state", "task_state"):
        del state[name]


GOOD: dict[str, Change] = {
    "as-it-is": lambda state: None,
    "old-arguments": _old_arguments,
    "oldest": _oldest,
    "averaged": _averaged,
    "half-precision": lambda s: s.update(model={k: v.half() for k, v in s["model"].items()}),
    "bfloat16": lambda s: s.update(model={k: v.bfloat16() for k, v in s["model"].items()}),
    "both-arguments": lambda s: s.update(args=copied(s)["cfg"]["model"]),
    "without-zip": lambda s: s.update(without_zip=True),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good(
    name: str, stock: State, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    state = copied(stock)
    GOOD[name](state)
    zipped = not state.pop("without_zip", False)
    torch.save(state, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    torch.save(stock, tmp_path / "stock.pt")
    wanted = outputs(as_fairseq(tmp_path / "stock.pt", tiny_translation.folder))
    everywhere = AttentionPlan.of({"encoder_self": of("collaborative", shared_dim=8)})
    convert_checkpoint(tmp_path / "in.pt", everywhere, tmp_path / "out.pt")
    found = as_fairseq(tmp_path / "out.pt", tiny_translation.folder)
    assert "collaborative" in found.encoder.layers[0].self_attn.attention.__class__.__name__.lower()
    rounded = {"half-precision": 1e-2, "bfloat16": 1e-1}.get(name, 1e-5)
    assert float((outputs(found) - wanted).abs().max()) < rounded
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    assert again["last_optimizer_state"] is None
    assert again["args"] is None
