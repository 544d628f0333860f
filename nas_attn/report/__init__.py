"""Reports of a study: tables, figures, page and summary."""

from nas_attn._imports import require_extra

require_extra("search")

from nas_attn.report.context import ReportContext  # noqa: E402
from nas_attn.report.report import write_report  # noqa: E402
from nas_attn.report.summary import summary_text  # noqa: E402

__all__ = ["ReportContext", "summary_text", "write_report"]
