"""Reports of run folders: an HTML page, a comparison, a view of a running one."""

from udas_fast.tools.report.compare import compare_runs
from udas_fast.tools.report.page import write_report
from udas_fast.tools.report.read import RunRecord, read_run, read_runs
from udas_fast.tools.report.watch import watch_run

__all__ = ["RunRecord", "compare_runs", "read_run", "read_runs", "watch_run", "write_report"]
