"""Which packages the extras bring, and errors that name the extra where one of them is missing.

The base install (torch, numpy, pydantic, pyyaml) has attention, plans, spaces and the conversion of
PyTorch models. Packages that need more say so in their `__init__`, so that an import fails at
once and in words, and not somewhere inside.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache

from nas_attn.errors import MissingExtraError

EXTRAS: dict[str, tuple[str, ...]] = {
    "search": (
        "fairseq", "jinja2", "matplotlib", "optuna", "pandas", "plotly", "ray", "rich", "sacrebleu",
        "scipy", "sentencepiece", "typer",
    ),
    "models": ("safetensors",),
    "shared": ("grpc", "psycopg"),
    "export": ("ctranslate2", "safetensors"),
}  # fmt: skip
"""For each extra of pyproject.toml the modules that it brings."""


@cache
def require_extra(extra: str, *modules: str) -> None:
    """Refuse to go on without what an extra brings.

    Args:
        extra: Name in `EXTRAS`.
        modules: Modules of the extra that are needed; all of them by default.

    Raises:
        MissingExtraError: Some are not installed.
    """
    missing = [name for name in modules or EXTRAS[extra] if not _is_installed(name)]
    if missing:
        raise MissingExtraError(extra, missing)


def _is_installed(module: str) -> bool:
    """Whether a module is there; it is not imported."""
    return module in sys.modules or importlib.util.find_spec(module) is not None
