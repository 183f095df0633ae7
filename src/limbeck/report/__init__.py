"""One self-contained HTML page per run or per comparison: readable without a network, safe to hand on."""

from limbeck.report.comparison import write_comparison, write_runs
from limbeck.report.run import write_report

__all__ = ["write_comparison", "write_report", "write_runs"]
