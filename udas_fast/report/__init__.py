"""Run folders as data, and one HTML page about them; reads files only, and knows nothing of how they were made."""

from udas_fast.report.page import write_report
from udas_fast.report.read import Run, read_run, read_runs

__all__ = ["Run", "read_run", "read_runs", "write_report"]
