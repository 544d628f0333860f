"""Reports of a study: tables, figures, page and summary."""

from nas_attn.report.report import ReportContext, summary_text, write_report

__all__ = ["ReportContext", "summary_text", "write_report"]
