"""Equivalence margin in units of the metric, from its declaration and a baseline that no verdict uses."""

import math
import re
from collections.abc import Sequence

from lab.errors import UsageError

_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*(of gain)?\s*")


def units(metric: str) -> str:
    """The unit of a metric; empty for a pure number."""
    if metric.endswith(("loss", "forgetting")):
        return "nats per token"
    if metric.endswith("bpb"):
        return "bits per byte"
    if metric.startswith("seconds"):
        return "s"
    return {"test_accuracy": "share", "base_test_accuracy": "share", "peak_memory_bytes": "bytes"}.get(metric, "")


def alike(one: str, other: str) -> bool:
    """True where what one metric differs by can be held against what another does: they are one, or have one unit."""
    return one == other or units(one) == units(other) != ""


def missing(metric: str) -> str:
    """What a run without a value of a metric did: of a loss it diverged, anything else it may just not have reached."""
    return "diverged" if metric.endswith(("loss", "bpb")) else "came to no value"


def parse(declared: float | str) -> tuple[float, str]:
    """(number, unit) of a declaration, the unit being `metric`, `loss` or `gain` of which the number is a share.

    Raises UsageError for anything but a positive number, "1%" and "5% of gain".
    """
    if isinstance(declared, int | float) and not isinstance(declared, bool):
        number, unit = float(declared), "metric"
    else:
        match = _SHARE.fullmatch(str(declared))
        number, unit = (float(match[1]) / 100, "gain" if match[2] else "loss") if match else (math.nan, "")
    if not (math.isfinite(number) and number > 0):
        raise UsageError(
            f"margin={declared!r} is no margin; give a positive number in units of the metric, '5% of gain' (of the "
            f"baseline over the base), or '1%' of the baseline's loss."
        )
    return number, unit


def value(declared: float | str, ends: Sequence[tuple[float | None, float | None]]) -> float | None:
    """The margin in units of the metric; None where a share is asked of nothing, or of no gain.

    `ends` are (loss of the base, loss of the baseline's run) of one or more seeds, of which the mean counts.
    """
    number, unit = parse(declared)
    if unit == "metric":
        return number
    known = [(base, end) for base, end in ends if end is not None and (base is not None or unit == "loss")]
    if not known:
        return None
    whole = math.fsum((base or 0.0) - end if unit == "gain" else abs(end) for base, end in known) / len(known)
    return number * whole if whole > 0 else None
