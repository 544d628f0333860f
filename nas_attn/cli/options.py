"""Options that several commands have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from nas_attn.errors import UsageError
from nas_attn.literals import parse_count
from nas_attn.measures import PredictedCost

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]


def complete_study(incomplete: str) -> list[str]:
    """Names of studies that begin so: shipped ones, files and run folders of the current folder."""
    from nas_attn.study.shipped import known_studies

    return [name for name in known_studies() if name.startswith(incomplete)]


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="A study: its file, the name of a shipped one or of NAME.yaml, or a run folder.",
        autocompletion=complete_study,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the study file, such as search.trials=40. Repeatable.",
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", metavar="DIR", help="Folder that holds the studies' run folders.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Optuna storage that several drivers share, such as "
        "postgresql+psycopg://USER@HOST/DATABASE or grpc://HOST:PORT; env:NAME for an "
        "environment variable that holds it.",
        show_default="the study's own",
    ),
]
AddressOption = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster, such as auto; implies ray.")
]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Trials to run in parallel.")]


def parse_limits(given: Sequence[str]) -> dict[str, float]:
    """Limits of costs by name.

    Args:
        given: Texts such as cache_bytes=4k.

    Raises:
        UsageError: One is no such text, or names no cost that can be predicted.
    """
    limits: dict[str, float] = {}
    for text in given:
        name, _, amount = text.partition("=")
        if name not in get_args(PredictedCost):
            raise UsageError(
                f"--limit: {text!r} is no limit; write NAME=NUMBER with one of "
                f"{', '.join(get_args(PredictedCost))}"
            )
        limits[name] = parse_count(amount, f"--limit {name}")
    return limits
