"""Calibration: what is timed, and thresholds that fit made-up times."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from nas_attn.attention import functional
from nas_attn.attention.thresholds import Thresholds
from nas_attn.attention.thresholds_file import read_thresholds
from nas_attn.benchmark import calibration
from nas_attn.benchmark.attention import BASELINE, STOCK, FusedMultiHead
from nas_attn.benchmark.calibration import (
    CALIBRATION_SHAPES,
    CASES,
    fit_thresholds,
    time_cases,
)
from nas_attn.benchmark.decoding import FusedDecoder, filled
from nas_attn.benchmark.setting import TRAINING, Setting, Shape, Timing
from tests.helpers.cli import invoke, run
from tests.helpers.devices import needs_cuda

SETTING = Setting(embed_dim=512, num_heads=8)


def fitted(milliseconds: Callable[[str, Shape], float | None]) -> Thresholds:
    """Thresholds that fit times by contender and shape; None is left out."""
    timings = []
    for name, case in CASES.items():
        for shape in CALIBRATION_SHAPES:
            for contender in (f"{name}: {i}" for i in case.implementations):
                taken = milliseconds(contender, shape)
                for phase in TRAINING if taken is not None else ():
                    timings.append(
                        Timing(
                            phase=phase,
                            batch=shape.batch,
                            length=shape.length,
                            causal=False,
                            contender=contender,
                            median_ms=taken or math.nan,
                            spread=0.0,
                            ratio=1.0,
                            rounds=5,
                            peak_mb=None,
                        )
                    )
    return fit_thresholds(timings, SETTING, "made up")


def test_equal_times_keep_the_plain_choices() -> None:
    """So does what is faster by less than the margin."""
    plain = Thresholds(source="made up", device="cpu", dtype="float32")
    assert fitted(lambda contender, shape: 1.0) == plain
    assert fitted(lambda contender, shape: 0.99 if "fused" not in contender else 1.0) == plain


def test_thresholds_lie_where_times_cross() -> None:
    def milliseconds(contender: str, shape: Shape) -> float | None:
        if contender == "unequal widths: explicit":
            return 1.0 if shape.length <= 128 else 9.0
        if contender == "unequal widths: unpadded":
            return 2.0
        if contender == "unequal widths: flex":
            return None
        if contender == "shifts: shared_scores":
            return 1.0 if shape.length >= 64 else 9.0
        return {"groups: rows": 2.0, "one head: fused": 2.0}.get(contender, 3.0)

    found = fitted(milliseconds)
    assert (found.explicit_max_scores, found.unequal_widths) == (128**2, "unpadded")
    assert (found.one_head, found.grouped_heads) == ("fused", "rows")
    least = found.shared_scores_min_queries
    assert least is not None
    for batch, length in CALIBRATION_SHAPES:
        work = batch * 512 * length**2
        taken = length >= least and work >= found.shared_scores_min_work
        assert taken == (length >= 64)


def test_what_cannot_everywhere_is_not_chosen() -> None:
    found = fitted(
        lambda contender, shape: (
            None
            if contender == "unequal widths: flex" and shape.length > 256
            else (1.0 if contender == "unequal widths: flex" else 3.0)
        )
    )
    assert found.unequal_widths == "fused"
    only_rows = fitted(lambda contender, shape: None if "shared" in contender else 1.0)
    assert only_rows.shared_scores_min_queries is None


def test_a_device_is_calibrated(tmp_path: Path) -> None:
    command = ["bench", "attention", "--calibrate", "--embed-dim=64", "--num-heads=4"]
    shapes = ["--seconds=0", "--shape=2x8", "--shape=1x40", "--out", str(tmp_path)]
    text = run(*command, *shapes)
    assert "explicit_max_scores: " in text
    assert f"NAS_ATTN_THRESHOLDS={tmp_path}/thresholds.json" in text
    (row,) = read_thresholds(tmp_path / "thresholds.json")
    assert (row.device, row.dtype, row.capability) == ("cpu", "float32", None)
    assert "width 64, 4 heads, float32" in row.source
    table = pd.read_csv(tmp_path / "calibration.csv")
    names = set(table["contender"])
    assert {"unequal widths: blockwise", "groups: rows", "shifts: shared_scores"} <= names
    assert "unequal widths: flex" not in names  # it has no gradients on a CPU
    assert set(table["phase"]) == set(TRAINING)


def failing(monkeypatch: pytest.MonkeyPatch, error: Callable[[str, int], None]) -> None:
    """Let implementations fail for lengths."""

    def attend(*, implementation: Any, keys: torch.Tensor, **rest: Any) -> Any:
        error(implementation, keys.size(2))
        return functional.attend(implementation=implementation, keys=keys, **rest)

    monkeypatch.setattr(calibration, "attend", attend)


def test_what_fails_is_left_out_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(implementation: str, length: int) -> None:
        if implementation == "explicit" and length == 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if implementation == "flex":
            raise TorchDynamoException("Failed to find C compiler")
        if implementation == "rows":
            raise torch.OutOfMemoryError("CUDA out of memory")

    failing(monkeypatch, error)
    setting = Setting(embed_dim=64, num_heads=4, seconds=0.0, min_rounds=1)
    timings = list(time_cases(setting, [Shape(2, 8), Shape(1, 40)]))
    explicit = {t.length for t in timings if t.contender == "unequal widths: explicit"}
    assert explicit == {8}
    plain = {t.length for t in timings if t.contender == "unequal widths: fused"}
    assert plain == {8, 40}
    names = {timing.contender for timing in timings}
    assert "unequal widths: flex" not in names
    # Without the plain choice there is nothing to compare with.
    assert {name.partition(":")[0] for name in names} == {"unequal widths", "groups"}
    found = fit_thresholds(timings, setting, "made up")
    assert (found.one_head, found.shared_scores_min_queries) == ("rows", None)
    everywhere = fit_thresholds([], setting, "made up")
    assert everywhere == Thresholds(source="made up", device="cpu", dtype="float32")


def test_what_was_timed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(implementation: str, length: int) -> None:
        if implementation == "explicit":
            raise ZeroDivisionError

    failing(monkeypatch, error)
    command = ["bench", "attention", "--calibrate", "--embed-dim=64", "--num-heads=4"]
    with pytest.raises(ZeroDivisionError):
        invoke(*command, "--seconds=0", "--shape=2x8", "--out", str(tmp_path))
    names = set(pd.read_csv(tmp_path / "calibration.csv")["contender"])
    assert {"one head: fused", "groups: rows", "shifts: shared_scores"} <= names
    assert not (tmp_path / "thresholds.json").exists()


@needs_cuda
def test_a_gpu_is_calibrated(tmp_path: Path) -> None:
    """FlexAttention among the rest: its kernels are compiled here."""
    command = ["bench", "attention", "--calibrate", "--device=cuda", "--dtype=bfloat16"]
    sizes = ["--embed-dim=64", "--num-heads=4", "--seconds=0", "--shape=2x64", "--shape=1x200"]
    run(*command, *sizes, "--out", str(tmp_path))
    (row,) = read_thresholds(tmp_path / "thresholds.json")
    major, minor = torch.cuda.get_device_capability()
    assert (row.device, row.dtype, row.capability) == ("cuda", "bfloat16", f"{major}.{minor}")
    table = pd.read_csv(tmp_path / "calibration.csv")
    names = set(table["contender"])
    assert {"unequal widths: flex", "unequal widths: unpadded"} <= names
    assert "unequal widths: blockwise" not in names  # it needs float32
    assert (table["peak_mb"] > 0).all()


@needs_cuda
def test_long_caches_are_decoded_on_a_gpu(tmp_path: Path) -> None:
    sizes = ["--embed-dim=64", "--num-heads=4", "--seconds=0", "--shape=2x64"]
    where = ["--device=cuda", "--dtype=bfloat16", "--decoding-shape=2x4096"]
    run("bench", "attention", *sizes, *where, "--out", str(tmp_path))
    table = pd.read_csv(tmp_path / "attention.csv").set_index(["phase", "contender"])
    for phase in ("decode", "reorder"):
        for contender in (BASELINE, STOCK, "multi_head", "multi_query"):
            assert table.loc[(phase, contender), "median_ms"] > 0


@pytest.mark.parametrize("pieces", [1, 2])
def test_torchs_decoder_attends_to_all_so_far(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's output is that of the module over the whole, whose state an order permutes."""
    torch.manual_seed(1)
    setting = Setting(embed_dim=16, num_heads=4, dtype=torch.float64)
    decoder = FusedDecoder(16, 4).double()
    whole = FusedMultiHead(16, 4).double()
    whole.load_state_dict(decoder.state_dict())
    monkeypatch.setattr("nas_attn.benchmark.decoding.PIECE", 6 // pieces)
    drawn = []
    true_tensor = Setting.tensor
    monkeypatch.setattr(
        Setting, "tensor", lambda self, *s: drawn.append(true_tensor(self, *s)) or drawn[-1]
    )
    state = filled(decoder, Shape(3, 6), setting)
    token = setting.tensor(1, 3, 16)
    output, _ = decoder(token, token, token, incremental_state=state)
    expected = whole(torch.cat(drawn).transpose(0, 1), causal=False)[:, -1]
    torch.testing.assert_close(output[0], expected, rtol=0, atol=1e-10)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    decoder.reorder_incremental_state(state, torch.tensor([2, 0, 0]))
    for name, tensor in state.items():
        assert torch.equal(tensor, kept[name][[2, 0, 0]])
