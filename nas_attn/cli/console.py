"""The terminal: what is printed, how errors look, and how Ctrl-C and SIGTERM end a command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from nas_attn.masking import mask

console = Console(
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120,
    # Plans, names and errors come from files, and are shown as they are.
    markup=False,
    emoji=False,
)


def say(text: Any) -> None:
    """Print a line as it is, however long."""
    console.print(text, highlight=False, soft_wrap=True)


def say_error(error: object) -> None:
    """Print an error without any password that is in it."""
    Console(stderr=True).print(Text(mask(f"nas-attn: {error}"), style="red"), soft_wrap=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end what runs as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the command in order, which says how to resume.

    Raises:
        typer.Exit: With status 130.
    """
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to resume")
        raise typer.Exit(130) from None
