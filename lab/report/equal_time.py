"""Losses of two arms at equal time: where the faster run of each pair ended."""

from collections.abc import Sequence
from itertools import pairwise

from lab.report.arms import Arm
from lab.report.refusals import refusal
from lab.report.run import Run


def at_equal_time(a: Arm, b: Arm) -> tuple[list[float], list[float]]:
    """Validation losses of a and b, pair by pair, at the moment the faster run ended, interpolated from metrics.csv.

    The clock starts with the run, so initialisation counts. Only pairs on the same device; the rest have no value.
    """
    partners = {run.pair: run for run in b.runs}
    both = []
    for run in a.runs:
        other = partners.get(run.pair)
        device = run.record.environment.get("device")
        if other is None or device is None or device != other.record.environment.get("device") or refusal(a, b):
            continue
        curves = [_over_time(run), _over_time(other)]
        if all(curves):
            at = min(curve[-1][0] for curve in curves)
            losses = [_interpolate(curve, at) for curve in curves]
            if None not in losses:
                both.append(losses)
    columns = [[x for x in column if x is not None] for column in zip(*both, strict=True)] or [[], []]
    return columns[0], columns[1]


def _over_time(run: Run) -> list[tuple[float, float]]:
    """(seconds since the run began, validation loss); empty where a resume broke the clock."""
    seconds, losses = run.curve("val_loss", over="seconds")
    steady = all(before < after for before, after in pairwise(seconds))
    return list(zip(seconds, losses, strict=True)) if steady else []


def _interpolate(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """The piecewise-linear curve at a time inside it, else None: nothing is extrapolated."""
    if at == curve[-1][0]:
        return curve[-1][1]
    for (t0, y0), (t1, y1) in pairwise(curve):
        if t0 <= at <= t1 and t1 > t0:
            return y0 + (y1 - y0) * (at - t0) / (t1 - t0)
    return None
