"""Commands that measure how fast attention is, and how good searches are."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_attn._deprecated import renamed_option
from nas_attn.cli.console import console
from nas_attn.cli.options import Device, Dtype
from nas_attn.errors import UsageError


def bench_attention(
    scheme: Annotated[
        list[str] | None,
        typer.Option(help="Time this scheme only. Repeatable.", show_default="all"),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCHxTOKENS",
            help="Time this shape. Repeatable.",
            show_default="16x32, 8x128, 4x512, 1x2048, 1x4096",
        ),
    ] = None,
    decoding_shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCHxTOKENS",
            help="Decode a step after so many tokens. Repeatable.",
            show_default="16x512",
        ),
    ] = None,
    implementations: Annotated[
        bool,
        typer.Option(
            help="Time each scheme by every implementation too, and as its paper writes it."
        ),
    ] = False,
    forms: Annotated[bool | None, typer.Option("--forms/--no-forms", hidden=True)] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Instead of schemes, time implementations of attention, and write the thresholds "
            "by which they are to be chosen on this device: thresholds.json."
        ),
    ] = False,
    causal: Annotated[bool, typer.Option(help="Attend to earlier positions only.")] = False,
    embed_dim: Annotated[int, typer.Option(min=1, help="Embedding dimension.")] = 512,
    num_heads: Annotated[int, typer.Option(min=1, help="Number of heads.")] = 8,
    threads: Annotated[
        int, typer.Option(min=1, help="PyTorch's threads. With one, CPU time is taken.")
    ] = 1,
    device: Annotated[Device, typer.Option(help="Device to time on.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Data type.")] = "float32",
    seconds: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds for each shape and phase, about; five rounds at least."
        ),
    ] = 20.0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder of tables and figure.")
    ] = Path("runs/bench"),
) -> None:
    """Time every attention scheme against torch's and fairseq's own attention.

    Forward, forward and backward, a step of decoding, and reordering what that keeps. All take
    turns within the run. A number is the time over that of multi-head attention on torch's
    scaled_dot_product_attention, when decoding over that of fairseq's MultiheadAttention: below 1
    is faster. Takes about four minutes.
    """
    from nas_attn.cli.bench_tables import timings_tables
    from nas_attn.workflows.bench import bench_attention as bench

    given = renamed_option("--forms", "--implementations", forms, implementations or None)
    common: dict[str, Any] = {
        "shapes": shape or (),
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "threads": threads,
        "device": device,
        "dtype": dtype,
        "seconds": seconds,
        "out": out,
        "on_start": lambda text: console.print(text, highlight=False),
    }
    if calibrate:
        _calibrate(common, bool(scheme or decoding_shape or given or causal))
        return
    timings = bench(
        schemes=scheme or (),
        decoding_shapes=decoding_shape or (),
        implementations=bool(given),
        causal=causal,
        **common,
    )
    console.print(timings_tables(timings))
    console.print(f"written: {out}/attention.csv, {out}/attention.png", highlight=False)


def _calibrate(common: dict[str, Any], of_schemes: bool) -> None:
    from nas_attn.cli.bench_tables import timings_tables
    from nas_attn.workflows.bench import calibrate_attention

    if of_schemes:
        raise UsageError(
            "--calibrate times what schemes have in common: leave --scheme, --decoding-shape, "
            "--implementations and --causal out"
        )
    timings, table = calibrate_attention(**common)
    console.print(timings_tables(timings))
    for name, value in asdict(table).items():
        console.print(f"{name}: {json.dumps(value)}", highlight=False, soft_wrap=True)
    path = common["out"] / "thresholds.json"
    for line in (
        f"written: {common['out']}/calibration.csv, {path}",
        f"commands use it with NAS_ATTN_THRESHOLDS={path.resolve()}",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def bench_fairseq(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="A binarised translation data set.")],
    scheme: Annotated[
        list[str] | None, typer.Option(help="Time this scheme. Repeatable.", show_default="all")
    ] = None,
    arch: Annotated[str, typer.Option(help="fairseq's architecture.")] = "transformer",
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is generated.")] = 3,
    training_rounds: Annotated[
        int, typer.Option(min=1, help="Times that everything is trained, a few updates each.")
    ] = 3,
    beam: Annotated[int, typer.Option(min=1, help="Beam size.")] = 5,
    length: Annotated[int, typer.Option(min=1, help="Tokens of every translation.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="PyTorch's threads.")] = 2,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Output folder of checkpoints, logs and fairseq.csv."),
    ] = Path("runs/bench-fairseq"),
) -> None:
    """Time fairseq-train and fairseq-generate with every scheme against stock fairseq.

    Models are hardly trained and translations equally long. A number is the speed over that of
    fairseq's own Transformer of the same size: above 1 is faster. A Transformer of base size takes
    about a minute per scheme and round on two cores. Every other flag goes to fairseq-train.
    """
    from nas_attn.benchmark.commands import Commands
    from nas_attn.cli.bench_tables import speeds_table
    from nas_attn.workflows.bench import bench_fairseq as bench

    speeds = bench(
        data,
        out,
        Commands(arch=arch, flags=context.args, beam=beam, length=length, threads=threads),
        schemes=scheme or (),
        rounds=rounds,
        training_rounds=training_rounds,
    )
    console.print(speeds_table(speeds))
    console.print(f"written: {out}/fairseq.csv", highlight=False)


def bench_search(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE]...",
            help="Shipped tables (demo, multi30k), or a file of curves with --study.",
            show_default="the shipped ones",
        ),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="Sampler, known_cost+predictions, or a peer: botorch, gp_flat, moasha, nsga3. "
            "Repeatable.",
            show_default="all of ours",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Stopping rule. Repeatable.", show_default="none"),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Trials at a time. Repeatable.", show_default="1"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each kind.")] = 20,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials of a search, stopped ones included.")
    ] = 60,
    study: Annotated[
        str | None, typer.Option(help="Study whose trainings the files of curves hold.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option(help="Leave plans that a table lacks out of its space.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder of table and figures.")
    ] = Path("runs/bench-search"),
) -> None:
    """Compare samplers and stopping rules on tables of trainings, without a training.

    Searches run in virtual time with the driver of a real one. What counts is the hypervolume of
    their front, as a share of the best that the table holds. The same command again goes on, or
    shows what search.csv holds.
    """
    from nas_attn.benchmark.search.replayed import SAMPLERS
    from nas_attn.cli.counted import counted
    from nas_attn.cli.search_tables import searches_tables
    from nas_attn.workflows.bench_search import compare_searches, shipped_tables

    with counted("searches") as on_run:
        compared = compare_searches(
            tables or shipped_tables(),
            samplers=sampler or SAMPLERS,
            rules=rule or ["none"],
            workers=workers or [1],
            seeds=seeds,
            trials=trials,
            out=out,
            study=study,
            allow_missing=allow_missing,
            on_run=on_run,
        )
    console.print(searches_tables(compared, trials))
    console.print(f"written: {out}/search.csv, {out}/search.png, {out}/search.svg", highlight=False)
