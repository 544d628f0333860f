"""Commands as text for people to paste into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def shell_text(command: Sequence[str], threads: int | None = None) -> str:
    """A command as one line to paste into a shell.

    Args:
        command: The argument list.
        threads: CPU threads to run it with; sums differ in the last bits with their number.
    """
    prefix = "" if threads is None else f"OMP_NUM_THREADS={threads} "
    return prefix + shlex.join(command)
