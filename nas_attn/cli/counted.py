"""Progress of work whose parts are counted: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import Progress

from nas_attn.cli.console import console, interruptible, say
from nas_attn.cli.loudness import is_quiet

LINE_SECONDS = 30.0
"""Seconds between two lines."""


@contextlib.contextmanager
def counted(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress; gives the function that is told of how many parts are done, of how many, and
    which was the last.

    Args:
        what: What the parts are.
    """
    said = time.monotonic()
    with interruptible(), Progress(console=console, transient=True, disable=is_quiet()) as bar:
        task = bar.add_task(what, total=None)

        def tell(done: int, total: int, last: str) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total, description=last)
            is_due = time.monotonic() - said >= LINE_SECONDS
            if is_due and not console.is_terminal and not is_quiet():
                said = time.monotonic()
                say(f"{done} of {total} {what}: {last}")

        yield tell
