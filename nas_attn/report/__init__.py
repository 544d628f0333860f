"""Reports of a study: tables, figures, page and summary."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas_attn._imports import require_extra

if TYPE_CHECKING:
    from nas_attn.report.context import ReportContext
    from nas_attn.report.report import write_report
    from nas_attn.report.summary import summary_text

require_extra("search")

_MODULES = {"ReportContext": "context", "summary_text": "summary", "write_report": "report"}
"""Where the public names are; they are imported when they are asked for, since torch and pandas are
slow and what a terminal shows needs neither."""

__all__ = ["ReportContext", "summary_text", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
