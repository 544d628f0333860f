"""fairseq plugin of nas-attn: pass this folder as `--user-dir` to any fairseq command.

`safe_globals` and `numpy_names` mend what fairseq 0.12.3 breaks under today's torch and numpy, and
`amp` what it does wrong under any.
"""

from nas_attn._imports import require_extra

require_extra("search", "fairseq")

from . import (  # noqa: E402
    amp,
    architectures,
    bleu,
    criterions,
    distillation,
    numpy_names,
    safe_globals,
    tasks,
)

__all__ = [
    "amp",
    "architectures",
    "bleu",
    "criterions",
    "distillation",
    "numpy_names",
    "safe_globals",
    "tasks",
]
