"""Checkpoints of all kinds: converted right or refused in words, by all commands that read one."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nas_attn.cli.main import main
from nas_attn.engine.config import ExecutionConfig
from nas_attn.errors import NasAttnError, UsageError
from nas_attn.fairseq_tools.arguments import parse_arguments
from nas_attn.fairseq_tools.convert import calibration_calls, convert_checkpoint, validation_losses
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.prune import load_checkpoint, prune_checkpoint
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.fairseq_tools.vote import vote_on_data
from nas_attn.plan import AttentionChoice, AttentionPlan
from nas_attn.study.sensitivity import target_of_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq's own modules

of = AttentionChoice.of
PLAN = AttentionPlan.of({"encoder_self": of("multi_query")})
SIDE = {"embed-dim": 8, "ffn-embed-dim": 8, "attention-heads": 2, "layers": 1}
SIZES = {
    side: [f"--{side}-{name}={value}" for name, value in SIDE.items()]
    for side in ("encoder", "decoder")
}
State = dict[str, Any]
Change = Callable[[State], Any]


def arguments_of(arch: str, task: str, flags: list[str]) -> argparse.Namespace:
    return parse_arguments(arch, ["--task", task, "--max-tokens=512", *flags])


def state_of(
    data: Path, arch: str = "transformer", task: str = "translation", flags: list[str] | None = None
) -> State:
    """What fairseq-train writes, of a model far from its start."""
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if flags is None:
        flags = [*SIZES["encoder"], *SIZES["decoder"]]
    args = arguments_of(arch, task, flags)
    args.data = str(data)
    config = convert_namespace_to_omegaconf(args)
    model = tasks.setup_task(config.task).build_model(config.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_attn" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return {
        "args": None,
        "cfg": OmegaConf.to_container(config, resolve=True, enum_to_str=True),
        "model": dict(model.state_dict()),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "Adam",
                "lr_scheduler_state": {"best": 3.0},
                "num_updates": 10,
            }
        ],
        "task_state": {},
        "extra_state": {"best": 3.0},
        "last_optimizer_state": {"much": torch.zeros(1000)},
    }


@pytest.fixture(scope="module")
def stock(tiny_translation: PreparedData) -> State:
    return state_of(tiny_translation.folder)


@pytest.fixture(scope="module")
def grouped(tiny_translation: PreparedData) -> State:
    """Of the plugin, a vote behind it."""
    flags = [*SIZES["encoder"], *SIZES["decoder"], "--keep=pillars", "--num-groups=1"]
    state = state_of(tiny_translation.folder, "grouped_head_transformer", flags=flags)
    for name, tensor in state["model"].items():
        if name.endswith(".kept"):
            tensor[1] = 0
        if name.endswith(".schedule"):
            tensor[0] = 3
    return state


def copied(state: State) -> State:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: State = torch.load(buffer, weights_only=True)
    return loaded


def outputs(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    tokens, previous = torch.randint(4, 40, (2, 3, 7), generator=generator)
    lengths = torch.full((3,), 7)
    with torch.no_grad():
        scores: Tensor = model.float().eval()(tokens, lengths, previous)[0]
    return scores


def as_fairseq(path: Path, data: Path) -> Any:
    """The model as fairseq's own commands load it."""
    from fairseq import checkpoint_utils

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"data": str(data)}
    )
    return models[0]


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
    "half": (_half, "cut off or damaged"),
    "damaged": (_damaged, "cut off or damaged"),
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


def refused_by_all(path: Path, data: Path, match: str) -> None:
    """Every command that reads a checkpoint refuses it, and leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    out = path.parent / "out.pt"

    def sensitivity() -> None:
        target_of_checkpoint(
            path,
            data,
            "grouped_query",
            cost="non_embedding",
            runs=path.parent,
            execution=ExecutionConfig(),
        )

    for command in (
        lambda: convert_checkpoint(path, PLAN, out),
        lambda: prune_checkpoint(path, out),
        lambda: vote_on_data(path, data, {"keep": "pillars"}, refit=False),
        sensitivity,
    ):
        with pytest.raises(UsageError, match=match) as refused:
            command()
        assert len(str(refused.value)) < 1500
    assert sorted(path.parent.iterdir()) == before


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


def test_averages_of_weights_are_left_out_with_a_word(
    stock: State,
    grouped: State,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for state, make in (
        (stock, lambda a, b: convert_checkpoint(a, PLAN, b)),
        (grouped, prune_checkpoint),
    ):
        state = copied(state)
        state["extra_state"] |= {"ema": state["model"], "ema_fp32_params": state["model"]}
        torch.save(state, tmp_path / "in.pt")
        caplog.clear()
        make(tmp_path / "in.pt", tmp_path / "out.pt")
        assert "running average of weights (EMA)" in caplog.text
        extra = torch.load(tmp_path / "out.pt", weights_only=True)["extra_state"]
        assert extra == {"best": 3.0}


def test_long_sentences_are_left_out_and_counted(
    stock: State,
    tiny_translation: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Longer than a batch, and longer than the model's positions."""
    torch.save(stock, tmp_path / "in.pt")
    trained = load_trained(tmp_path / "in.pt")
    data = tiny_translation.folder
    whole = len(validation_losses(trained, data).sums)
    monkeypatch.setattr("nas_attn.fairseq_tools.convert.BATCH_TOKENS", 9)
    assert 0 < len(validation_losses(trained, data).sums) < whole
    assert f"of {whole} sentences of the side valid of {data} are left out" in caplog.text
    assert calibration_calls(trained, data)["encoder_self.0"]
    monkeypatch.setattr("nas_attn.fairseq_tools.convert.BATCH_TOKENS", 2048)
    trained.model.encoder.max_source_positions = 8
    assert 0 < len(validation_losses(trained, data).sums) < whole
    trained.model.encoder.max_source_positions = 1
    with pytest.raises(UsageError, match="no sentence of the side valid"):
        validation_losses(trained, data)
    monkeypatch.setattr("nas_attn.fairseq_tools.vote.MAX_TOKENS", 9)
    caplog.clear()
    vote_on_data(tmp_path / "in.pt", data, {"keep": "pillars", "num_groups": 1}, refit=True)
    assert "are left out" in caplog.text


def test_adaptive_inputs_are_converted(tiny_language: PreparedData, tmp_path: Path) -> None:
    """As in fairseq's models of WikiText-103."""
    flags = [*SIZES["decoder"], "--tokens-per-sample=32", "--adaptive-input",
             "--adaptive-input-cutoff=20,40", "--adaptive-softmax-cutoff=20,40",
             "--adaptive-input-factor=2", "--criterion=adaptive_loss"]  # fmt: skip
    data = tiny_language.folder
    state = state_of(data, "transformer_lm", "language_modeling", flags)
    torch.save(state, tmp_path / "in.pt")
    wide = AttentionPlan.of({"decoder_self": of("collaborative", shared_dim=8)})
    found = convert_checkpoint(tmp_path / "in.pt", wide, tmp_path / "out.pt", data=data)
    assert found.losses is not None
    assert found.losses[1] == pytest.approx(found.losses[0], abs=1e-5)
    tokens = torch.randint(4, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = (
            as_fairseq(tmp_path / name, data).eval()(tokens)[0] for name in ("in.pt", "out.pt")
        )
    assert float((before - after).abs().max()) < 1e-5


def test_character_embeddings_are_refused_by_their_name(
    stock: State, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    state = copied(stock)
    weights = state["model"]
    del weights["encoder.embed_tokens.weight"]
    weights["encoder.embed_tokens.char_embeddings.weight"] = torch.ones(4, 4)
    torch.save(state, tmp_path / "in.pt")
    refused_by_all(tmp_path / "in.pt", tiny_translation.folder, "letter by letter")


def test_dictionaries_of_other_sizes_are_refused(
    stock: State, tiny_translation: PreparedData, tmp_path: Path
) -> None:
    for side in ("encoder", "decoder"):
        state = copied(stock)
        for name in (f"{side}.embed_tokens.weight", f"{side}.output_projection.weight"):
            if name in state["model"]:
                state["model"][name] = state["model"][name][:-3]
        torch.save(state, tmp_path / "in.pt")
        word = "source" if side == "encoder" else "target"
        with pytest.raises(UsageError, match=f"types, but the {word} dictionary of"):
            validation_losses(load_trained(tmp_path / "in.pt"), tiny_translation.folder)


def test_a_file_is_replaced_whole_or_not_at_all(
    stock: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.pt"
    torch.save(stock, path)
    before = path.read_bytes()
    (tmp_path / "link.pt").symlink_to(path)
    for out, match in (
        (path, "is the checkpoint itself"),
        (tmp_path / "link.pt", "is the checkpoint itself"),
        (tmp_path, "is a folder"),
        (path / "out.pt", "cannot be written"),
    ):
        with pytest.raises(UsageError, match=match):
            convert_checkpoint(path, PLAN, out)
        with pytest.raises(UsageError, match=match):
            prune_checkpoint(path, out)

    def interrupted(state: Any, file: Any) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(path, PLAN, tmp_path / "out.pt")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pt", "link.pt"]


@pytest.mark.parametrize("command", ["convert", "prune", "sensitivity"])
def test_the_commands_exit_with_two(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In words, without a traceback."""
    path, out = str(tmp_path / "odd.pt"), ["--out", str(tmp_path / "out.pt")]
    torch.save([1], path)
    more = {"convert": ["--plan", PLAN.dumps(), *out], "prune": out, "sensitivity": ["--data", "."]}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas-attn", command, path, *more[command]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is no checkpoint of fairseq-train" in " ".join(capsys.readouterr().err.split())
