"""Measure how fast attention is, and write what was measured."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from nas_attn.attention import SCHEMES, get_scheme
from nas_attn.attention.functional import IMPLEMENTATIONS
from nas_attn.attention.thresholds import Thresholds
from nas_attn.attention.thresholds_file import LONGEST_SOURCE, write_thresholds
from nas_attn.benchmark.attention import DECODING_SHAPES, SHAPES, time_attention
from nas_attn.benchmark.calibration import CALIBRATION_SHAPES, fit_thresholds, time_cases
from nas_attn.benchmark.commands import Commands, Speed, time_commands
from nas_attn.benchmark.figure import write_figure
from nas_attn.benchmark.setting import Setting, Shape, Timing
from nas_attn.errors import NasAttnError
from nas_attn.machine import machine_text

MEASURES = ("words_a_second", "decoding", "command")


def bench_attention(
    *,
    schemes: Sequence[str],
    shapes: Sequence[str],
    decoding_shapes: Sequence[str],
    implementations: bool,
    causal: bool,
    embed_dim: int,
    num_heads: int,
    threads: int,
    device: Literal["cpu", "cuda"],
    dtype: Literal["float32", "float64", "bfloat16", "float16"],
    seconds: float,
    out: Path,
    on_start: Callable[[str], None],
) -> list[Timing]:
    """Time attention modules, and write attention.csv and attention.png.

    What was timed is in the table also if the run fails or is stopped.

    Args:
        schemes: Names; all if empty.
        shapes: `BATCHxTOKENS` texts; the usual ones if empty.
        decoding_shapes: Shapes of a decoding step, likewise: it comes after so many tokens.
        implementations: Whether each scheme is also timed by every implementation, and as its paper
            writes it.
        causal: Attend to earlier positions only.
        embed_dim: Width.
        num_heads: Heads.
        threads: PyTorch's threads.
        device: Device, `cpu` or `cuda`.
        dtype: Type of the numbers.
        seconds: Seconds for each shape and phase, about.
        out: Folder for the files.
        on_start: Function that is called with a line about what is measured on.

    Raises:
        NasAttnError: An argument does not fit; says which.
    """
    for name in schemes:
        get_scheme(name)
    at, decoding_at = _parse(shapes) or SHAPES, _parse(decoding_shapes) or DECODING_SHAPES
    setting = _setting(embed_dim, num_heads, threads, device, dtype, seconds, causal)
    on_start(_text(setting))
    tried = IMPLEMENTATIONS if implementations else ()
    measured = time_attention(setting, at, decoding_at, schemes, implementations=tried)
    timings = _kept(measured, setting, out / "attention.csv")
    write_figure(timings, out / "attention.png")
    return timings


def calibrate_attention(
    *,
    shapes: Sequence[str],
    embed_dim: int,
    num_heads: int,
    threads: int,
    device: Literal["cpu", "cuda"],
    dtype: Literal["float32", "float64", "bfloat16", "float16"],
    seconds: float,
    out: Path,
    on_start: Callable[[str], None],
) -> tuple[list[Timing], Thresholds]:
    """Time implementations of attention, and write calibration.csv and thresholds.json.

    What was timed is in the table also if the run fails or is stopped.

    Args:
        shapes: `BATCHxTOKENS` texts; the usual ones if empty.
        embed_dim: Width.
        num_heads: Heads.
        threads: PyTorch's threads.
        device: Device, `cpu` or `cuda`.
        dtype: Type of the numbers.
        seconds: Seconds for each case, shape and phase, about.
        out: Folder for the files.
        on_start: Function that is called with a line about what is measured on.

    Returns:
        The times, and the thresholds that fit them.

    Raises:
        NasAttnError: An argument does not fit; says which.
    """
    at = _parse(shapes) or CALIBRATION_SHAPES
    setting = _setting(embed_dim, num_heads, threads, device, dtype, seconds, causal=False)
    on_start(_text(setting))
    timings = _kept(time_cases(setting, at), setting, out / "calibration.csv")
    source = f"nas-attn bench attention --calibrate: {_text(setting)}"
    table = fit_thresholds(timings, setting, source[:LONGEST_SOURCE])
    write_thresholds([table], out / "thresholds.json")
    return timings, table


def _setting(
    embed_dim: int,
    num_heads: int,
    threads: int,
    device: str,
    dtype: str,
    seconds: float,
    causal: bool,
) -> Setting:
    if device == "cuda" and not torch.cuda.is_available():
        raise NasAttnError("PyTorch finds no CUDA device here")
    if embed_dim % num_heads:
        raise NasAttnError(f"{num_heads} heads do not divide a width of {embed_dim}")
    return Setting(
        embed_dim=embed_dim,
        num_heads=num_heads,
        device=device,
        dtype=getattr(torch, dtype),
        threads=threads,
        seconds=seconds,
        causal=causal,
    )


def _text(setting: Setting) -> str:
    clock = "CPU time" if setting.device == "cpu" and setting.threads == 1 else "wall time"
    return (
        f"torch {torch.__version__}; {machine_text()}; {setting.threads} thread(s), {clock}; "
        f"width {setting.embed_dim}, {setting.num_heads} heads, "
        f"{str(setting.dtype).removeprefix('torch.')}"
    )


def _kept(measured: Iterable[Timing], setting: Setting, path: Path) -> list[Timing]:
    """All that is measured, written to a file even if measuring fails on the way."""
    timings: list[Timing] = []
    try:
        timings.extend(measured)
    finally:
        if timings:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_timings(timings, setting, path)
    if not timings:
        raise NasAttnError("nothing could be timed; the log says why")
    return timings


def _write_timings(timings: Sequence[Timing], setting: Setting, path: Path) -> None:
    dtype = str(setting.dtype).removeprefix("torch.")
    common: dict[str, Any] = {"device": setting.device, "dtype": dtype}
    common |= {"threads": setting.threads, "torch": torch.__version__}
    common |= {"embed_dim": setting.embed_dim, "num_heads": setting.num_heads}
    rows = [asdict(timing) | common for timing in timings]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def bench_fairseq(
    data: Path, out: Path, commands: Commands, *, schemes: Sequence[str], **options: Any
) -> Sequence[Speed]:
    """Time fairseq's commands with every scheme against stock fairseq, and write fairseq.csv.

    Args:
        data: Folder of a binarised translation data set.
        out: Folder for checkpoints, logs and the table.
        commands: Settings by which the commands are run.
        schemes: Names; all if empty.
        options: See `nas_attn.benchmark.commands.time_commands`.

    Raises:
        NasAttnError: There is no such data set, or a command fails.
    """
    if not data.is_dir():
        raise NasAttnError(f"there is no data set {data}; nas-attn prepare makes one")
    speeds = time_commands(data, out, schemes or list(SCHEMES), commands, **options)
    with (out / "fairseq.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["contender", "measure", "round", "value"])
        for speed in speeds:
            for measure in MEASURES:
                for turn, value in enumerate(getattr(speed, measure)):
                    writer.writerow([speed.contender, measure, turn, value])
    return speeds


def _parse(texts: Sequence[str]) -> list[Shape]:
    try:
        return [Shape.parse(text) for text in texts]
    except ValueError as error:
        raise NasAttnError(str(error)) from None
