"""The report as one HTML file."""

from dlmbench.report.html.document import page, write_report

__all__ = ["page", "write_report"]
