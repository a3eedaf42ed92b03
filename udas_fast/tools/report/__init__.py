"""Run folders as data: one HTML page about them, a comparison, a view of a running one."""

from udas_fast.tools.report.compare import compare_runs
from udas_fast.tools.report.page import write_report
from udas_fast.tools.report.read import Run, read_run, read_runs
from udas_fast.tools.report.watch import watch_run

__all__ = ["Run", "compare_runs", "read_run", "read_runs", "watch_run", "write_report"]
