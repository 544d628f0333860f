"""How much a command says, and where: options that many commands have, and what they switch."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_attn.cli.console import console
from nas_attn.errors import UsageError

OURS = logging.getLogger("nas_attn")
NOISY = ("fairseq", "ray", "matplotlib", "torch", "httpx", "optuna")
"""Loggers of packages that are heard with --verbose alone."""


def silence_packages() -> None:
    """Let packages log errors only."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def is_quiet() -> bool:
    """Whether progress is not shown."""
    return OURS.level > logging.INFO


def is_verbose() -> bool:
    """Whether all that is logged is shown."""
    return OURS.level == logging.DEBUG


def _be_quiet(context: typer.Context, given: bool) -> bool:
    return _set_level(context, given, logging.WARNING)


def _be_verbose(context: typer.Context, given: bool) -> bool:
    given = _set_level(context, given, logging.DEBUG)
    if given:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.INFO)
        context.find_root().call_on_close(silence_packages)
    return given


def _set_level(context: typer.Context, given: bool, level: int) -> bool:
    if not given or context.resilient_parsing:
        return given
    if OURS.level not in (logging.NOTSET, level):
        raise UsageError("--quiet and --verbose contradict each other: give one of them")
    OURS.setLevel(level)
    context.find_root().call_on_close(lambda: OURS.setLevel(logging.NOTSET))
    return given


def _leave_stdout(context: typer.Context, given: bool) -> bool:
    """Send everything but the result to standard error."""
    if given and not context.resilient_parsing:
        root = context.find_root()
        console.stderr = True
        root.call_on_close(_return_to_stdout)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                root.call_on_close(partial(handler.setStream, sys.stdout))
                handler.setStream(sys.stderr)
    return given


def _return_to_stdout() -> None:
    console.stderr = False


QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_be_quiet, help="Show no progress; only the result."),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_be_verbose, help="Show everything that is logged."),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_leave_stdout,
        help="Print one JSON object to standard output; anything else goes to standard error.",
    ),
]


def say_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object in a line; numbers that JSON has not are null."""
    sys.stdout.write(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
