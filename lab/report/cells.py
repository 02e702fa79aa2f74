"""Cells of the tables of contrasts: two arms, a difference, an interval, a verdict."""

from lab.report.comparison import Comparison
from lab.report.document import MISSING, signed


def verdict_of(row: Comparison) -> str:
    """The verdict with the winner's name in it."""
    named = {"a_better": f"{row.arm_a} better", "b_better": f"{row.arm_b} better"}
    return named.get(row.verdict, row.verdict.replace("_", " "))


def versus(row: Comparison) -> str:
    """The two arms of a row."""
    return f"{row.arm_a} vs itself (A/A)" if row.kind == "aa" else f"{row.arm_a} vs {row.arm_b}"


def interval(low: float | None, high: float | None, metric: str = "") -> str:
    """An interval in the unit of a metric."""
    return MISSING if low is None else f"{difference(low, metric)} to {difference(high, metric)}"


def difference(value: float | None, metric: str) -> str:
    """A difference in the unit of a metric."""
    if metric == "peak_memory_bytes" and value is not None:
        return f"{value / 1e6:+,.1f} MB"
    return signed(value, 1 if metric.startswith("seconds") else 4)
