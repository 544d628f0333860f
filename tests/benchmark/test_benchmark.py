"""The bench commands, on sizes that take no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from nas_attn.attention.functional import IMPLEMENTATIONS
from nas_attn.benchmark.attention import (
    BASELINE,
    FusedMultiHead,
    ReferenceModule,
    SchemeModule,
    contenders,
    time_attention,
)
from nas_attn.benchmark.commands import Speed, ratio
from nas_attn.benchmark.setting import Setting, Shape, take_turns
from nas_attn.fairseq_tools.data import PreparedData
from tests.helpers.cli import invoke, run

SMALL = ["--embed-dim=16", "--num-heads=4", "--seconds=0", "--decoding-shape=2x5"]


def test_attention_table_and_figure(tmp_path: Path) -> None:
    text = run(
        "bench", "attention", *SMALL, "--shape=2x6", "--implementations", "--out", str(tmp_path)
    )
    assert "5 rounds" in text
    table = pd.read_csv(tmp_path / "attention.csv")
    assert set(table["phase"]) == {"forward", "forward_backward", "decode", "reorder"}
    at = table.set_index(["phase", "contender"])
    assert at.loc[("forward", BASELINE), "ratio"] == at.loc[("decode", "fairseq"), "ratio"] == 1.0
    decoded = set(table.loc[table["phase"] == "decode", "contender"])
    assert {BASELINE, "fairseq", "multi_head"} <= decoded
    names = set(table["contender"])
    assert {"torch module", "multi_query", "multi_query: reference", "multi_query: rows"} <= names
    assert "multi_query: shared_scores" not in names  # it cannot
    assert (table["median_ms"] > 0).all()
    assert (table["spread"] >= 0).all()
    assert (tmp_path / "attention.png").stat().st_size > 10_000


@pytest.mark.parametrize("causal", [False, True])
def test_contenders_compute_what_they_are_named_for(causal: bool) -> None:
    """A scheme's reference and implementations agree, and all stock attentions do."""
    torch.manual_seed(1)
    setting = Setting(embed_dim=16, num_heads=4, dtype=torch.float64)
    field = contenders(setting, implementations=IMPLEMENTATIONS)
    x = setting.tensor(2, 7, 16)
    for name, module in field.items():
        if not isinstance(module, ReferenceModule):
            continue
        expected = module(x, causal)
        for implementation in (None, *IMPLEMENTATIONS):
            copied = field[
                name.replace(": reference", "" if implementation is None else f": {implementation}")
            ]
            assert isinstance(copied, SchemeModule)
            copied.attention.load_state_dict(module.attention.state_dict())
            try:
                found = copied(x, causal)
            except ValueError:
                continue
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    base, ours = field[BASELINE], field["multi_head"]
    state = base.state_dict()
    ours.attention.load_state_dict(state)
    field["fairseq"].attention.load_state_dict(state)
    torch_state = {
        "in_proj_weight": torch.cat([state[f"{n}_proj.weight"] for n in "qkv"]),
        "in_proj_bias": torch.cat([state[f"{n}_proj.bias"] for n in "qkv"]),
        "out_proj.weight": state["out_proj.weight"],
        "out_proj.bias": state["out_proj.bias"],
    }
    field["torch module"].load_state_dict(torch_state)
    for module in (ours, field["fairseq"], field["torch module"]):
        torch.testing.assert_close(module(x, causal), base(x, causal), rtol=0, atol=1e-10)


def test_what_cannot_be_trained_is_left_out() -> None:
    """FlexAttention has no gradients on a CPU, where it would otherwise compile a kernel first."""
    setting = Setting(embed_dim=128, num_heads=8)
    timings = list(
        time_attention(
            replace(setting, seconds=0.0, min_rounds=1),
            [Shape(1, 4)],
            [],
            ["collaborative"],
            implementations=["unpadded", "flex"],
        )
    )
    found = {timing.contender for timing in timings}
    assert "collaborative (shared_dim 32): unpadded" in found
    assert not any(name.endswith(": flex") for name in found)


def test_what_fails_is_left_out_of_its_shape(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too little memory for gradients, say; the baseline's shape is then not timed at all."""
    true_call, true_base = SchemeModule.forward, FusedMultiHead.forward

    class Grown(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    def scheme(module: SchemeModule, x: torch.Tensor, causal: bool) -> torch.Tensor:
        output = true_call(module, x, causal)
        return Grown.apply(output) if x.size(1) == 6 else output

    def base(module: FusedMultiHead, x: torch.Tensor, causal: bool) -> torch.Tensor:
        if x.size(1) == 8:
            raise torch.OutOfMemoryError("too long")
        return true_base(module, x, causal)

    monkeypatch.setattr(SchemeModule, "forward", scheme)
    monkeypatch.setattr(FusedMultiHead, "forward", base)
    setting = Setting(embed_dim=16, num_heads=4, seconds=0.0, min_rounds=1)
    shapes = [Shape(1, 4), Shape(1, 6), Shape(1, 8)]
    timings = list(time_attention(setting, shapes, [], ["multi_query"]))
    timed = {(timing.contender, timing.length) for timing in timings}
    assert timed & {("multi_query", n) for n in (4, 6, 8)} == {("multi_query", 4)}
    assert {length for name, length in timed if name == BASELINE} == {4, 6}
    assert "multi_query 1x6 is left out: OutOfMemoryError: CUDA out of memory" in caplog.messages
    assert f"forward 1x8 is not timed, as {BASELINE} cannot do it" in caplog.messages


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_and_memory_after_the_warm_up(
    device: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rounds count as are promised; memory is the most of any of them."""
    warm_up = 3 if device == "cuda" else 1
    peaks = [900] * warm_up + [100 + 10 * (rounds - turn) for turn in range(rounds)]
    taken: list[float] = []

    def turn() -> float:
        taken.append(9.0 if len(taken) < warm_up else 1.0)
        return taken[-1]

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks[len(taken) - 1] * 2**20)
    setting = Setting(device=device, seconds=0.0, min_rounds=rounds)
    (found,) = take_turns("forward", Shape(1, 1), {"x": turn}, "x", setting)
    assert (found.rounds, found.median_ms, found.spread) == (rounds, 1000.0, 0.0)
    assert found.peak_mb == (100 + 10 * rounds if device == "cuda" else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape=16by32"], "a shape is BATCHxLENGTH, such as 16x32, but '16by32' was given"),
        (["--scheme=multihead"], "unknown scheme 'multihead'"),
        (["--num-heads=5"], "5 heads do not divide a width of 16"),
        pytest.param(
            ["--device=cuda"],
            "PyTorch finds no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_cannot_be_timed(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = ["bench", "attention", *SMALL, *arguments, "--out", str(tmp_path / "out")]
    assert message in run(*command, status=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--causal", "--scheme=multi_head", "--implementations"])
def test_calibration_takes_no_schemes(option: str, tmp_path: Path) -> None:
    command = ["bench", "attention", "--calibrate", option, "--out", str(tmp_path / "out")]
    assert "--calibrate times what schemes have in common" in run(*command, status=2)
    assert not (tmp_path / "out").exists()


def test_shapes_are_read() -> None:
    assert Shape.parse("16x32") == Shape(16, 32)
    for text in ("16", "x3", "0x4", "3x-1"):
        with pytest.raises(ValueError, match="a shape is"):
            Shape.parse(text)


def test_the_former_flag_is_taken_and_hidden(tmp_path: Path) -> None:
    command = ["bench", "attention", *SMALL, "--scheme=multi_query", "--shape=2x6"]
    with pytest.warns(FutureWarning, match="the option --forms is called --implementations now"):
        invoke(*command, "--forms", "--out", str(tmp_path))
    assert "multi_query: rows" in (tmp_path / "attention.csv").read_text()
    assert "--forms" not in invoke("bench", "attention", "--help")


@pytest.mark.long
@pytest.mark.slow
def test_fairseq_commands(tiny_translation: PreparedData, tmp_path: Path) -> None:
    sizes = [
        f"--{side}-{size}"
        for side in ("encoder", "decoder")
        for size in ("layers=1", "embed-dim=16", "ffn-embed-dim=16", "attention-heads=4")
    ]
    text = run(
        "bench", "fairseq", str(tiny_translation.folder), "--scheme=multi_query", "--rounds=1",
        "--training-rounds=1", "--threads=1", "--out", str(tmp_path), "--max-tokens=256",
        "--share-all-embeddings", *sizes,
    )  # fmt: skip
    assert "multi_query" in text
    table = pd.read_csv(tmp_path / "fairseq.csv")
    assert set(table["contender"]) == {"fairseq", "multi_query"}
    assert set(table["measure"]) == {"words_a_second", "decoding", "command"}
    assert (table["value"] > 0).all()
    missing = run("bench", "fairseq", str(tmp_path / "nowhere"), status=1)
    assert "nas-attn prepare makes one" in missing


@pytest.mark.slow
def test_a_failing_command_names_its_log(tiny_translation: PreparedData, tmp_path: Path) -> None:
    command = ["bench", "fairseq", str(tiny_translation.folder), "--scheme=multi_query"]
    text = run(*command, "--max-tokens=much", "--out", str(tmp_path), status=1)
    assert "fairseq-train failed with exit status 2" in text
    assert "invalid int value" in (tmp_path / "fairseq-train-0.log").read_text()


def test_ratios_are_of_medians() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 2.0, 8.0]) == 2.0
    assert Speed("fairseq").decoding == []
