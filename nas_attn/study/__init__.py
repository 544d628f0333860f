"""Studies: their files, checked whole, and what is built from them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas_attn._imports import require_extra

if TYPE_CHECKING:
    from nas_attn.study.config import StudyConfig
    from nas_attn.study.loading import load_study
    from nas_attn.study.sensitivity import (
        SensitivityTarget,
        target_of_checkpoint,
        target_of_study,
    )
    from nas_attn.study.study import Study

require_extra("search")

_MODULES = {
    "SensitivityTarget": "sensitivity",
    "Study": "study",
    "StudyConfig": "config",
    "load_study": "loading",
    "target_of_checkpoint": "sensitivity",
    "target_of_study": "sensitivity",
}
"""Where the public names are; they are imported when they are asked for, since fairseq is slow."""

__all__ = [
    "SensitivityTarget",
    "Study",
    "StudyConfig",
    "load_study",
    "target_of_checkpoint",
    "target_of_study",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
