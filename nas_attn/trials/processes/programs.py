"""The programs of trials, run by this very Python, whatever PATH says."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nas_attn.errors import NasAttnError

WITH_FAIRSEQ = (
    *("fairseq-train", "fairseq-generate", "fairseq-eval-lm", "fairseq-validate"),
    *("nas-attn", "nas-attn-measure"),
)
"""The programs that import fairseq."""
MODULES = {
    "fairseq-train": "fairseq_cli.train",
    "fairseq-generate": "fairseq_cli.generate",
    "fairseq-eval-lm": "fairseq_cli.eval_lm",
    "fairseq-validate": "fairseq_cli.validate",
    "nas-attn": "nas_attn.cli.main",
    "nas-attn-measure": "nas_attn.fairseq_tools.measure",
    "nas-attn-replay": "nas_attn.simulation.command",
}


def executable_form(command: Sequence[str]) -> list[str]:
    """`fairseq-train ...` and its like as run by this very Python, whatever PATH says.

    Raises:
        NasAttnError: the program is unknown.
    """
    module = MODULES.get(command[0])
    if module is None:
        raise NasAttnError(f"cannot run {command[0]!r}; there are {', '.join(MODULES)}")
    return [sys.executable, "-m", module, *command[1:]]


def needs_fairseq(command: Sequence[str]) -> bool:
    """Whether a command imports fairseq."""
    return command[0] in WITH_FAIRSEQ
