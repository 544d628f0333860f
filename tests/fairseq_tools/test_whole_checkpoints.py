"""Checkpoints with what few have, such as averages or adaptive inputs; files replaced whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_attn.cli.main import main
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.convert import calibration_calls, convert_checkpoint, validation_losses
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.prune import prune_checkpoint
from nas_attn.fairseq_tools.trained import load_trained
from nas_attn.fairseq_tools.vote import vote_on_data
from nas_attn.plan import AttentionPlan
from tests.helpers.checkpoints import (
    PLAN,
    SIZES,
    State,
    as_fairseq,
    copied,
    of,
    outputs,
    refused_by_all,
    state_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of fairseq's own modules


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


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-cross-attention"],
        ["--cross-self-attention"],
        ["--adaptive-softmax-cutoff=10,20", "--encoder-layerdrop=0.2"],
        ["--layernorm-embedding", "--no-scale-embedding", "--encoder-learned-pos"],
        ["--encoder-normalize-before", "--no-decoder-final-norm", "--decoder-output-dim=4"],
    ],
    ids=" ".join,
)
def test_unusual_models_are_taken_over_as_they_are(
    flags: list[str], tiny_translation: PreparedData, tmp_path: Path
) -> None:
    state = state_of(tiny_translation.folder, flags=[*SIZES["encoder"], *SIZES["decoder"], *flags])
    torch.save(state, tmp_path / "in.pt")
    convert_checkpoint(tmp_path / "in.pt", AttentionPlan.of({}), tmp_path / "out.pt")
    paths = (tmp_path / "in.pt", tmp_path / "out.pt")
    before, after = (outputs(as_fairseq(path, tiny_translation.folder)) for path in paths)
    assert float((after - before).abs().max()) < 1e-5
