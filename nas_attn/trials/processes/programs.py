"""The programs of trials, run by this very Python, whatever PATH says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import entry_points

from nas_attn.errors import NasAttnError

WITH_FAIRSEQ = (
    *("fairseq-train", "fairseq-generate", "fairseq-eval-lm", "fairseq-validate"),
    *("nas-attn", "nas-attn-measure"),
)
"""The programs that import fairseq."""
PROGRAMS = (*WITH_FAIRSEQ, "nas-attn-replay")


def executable_form(command: Sequence[str]) -> list[str]:
    """`fairseq-train ...` and its like as run by this very Python, whatever PATH says.

    Raises:
        NasAttnError: the program is unknown or not installed.
    """
    return [sys.executable, "-m", _module_of(command[0]), *command[1:]]


def needs_fairseq(command: Sequence[str]) -> bool:
    """Whether a command imports fairseq."""
    return command[0] in WITH_FAIRSEQ


@lru_cache
def _module_of(program: str) -> str:
    """The module whose function an installed program calls."""
    if program not in PROGRAMS:
        raise NasAttnError(f"cannot run {program!r}; there are {', '.join(PROGRAMS)}")
    for found in entry_points(group="console_scripts", name=program):
        return found.module
    raise NasAttnError(
        f"the program {program} is not installed for {sys.executable}: install nas-attn again "
        "(pip install -e . in its folder), as an installation from before it had this program "
        "does not know it"
    )
