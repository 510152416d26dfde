"""Report pages of searches: what was found, how discrete it was, and how runs compare."""

from da2s_fast.report.compare import Comparison, compare_runs
from da2s_fast.report.page import write_report
from da2s_fast.report.run import RunRecord, load_run

__all__ = ["Comparison", "RunRecord", "compare_runs", "load_run", "write_report"]
