"""Reports of a study: tables, figures, page and summary."""

from nas_attn.report.context import ReportContext
from nas_attn.report.report import write_report
from nas_attn.report.summary import summary_text

__all__ = ["ReportContext", "summary_text", "write_report"]
