"""The report: one self-contained page about the results of a benchmark, or about a plan."""

from loraplan.report.data import bench_data, plan_data
from loraplan.report.page import page

__all__ = ["bench_data", "page", "plan_data"]
