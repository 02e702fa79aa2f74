"""Metrics that a study may be judged by: which way is better, and what a job needs so that it comes to a value."""

from lab.errors import UsageError, nearest
from lab.record import METRICS
from lab.record.study import Study
from lab.verdict import margin

HIGHER = ("accuracy", "accuracy_low", "accuracy_high")  # ends of names
LOWER = ("loss", "bpb", "perplexity", "forgetting", "bytes")
WITH_BASE = ("val_loss", "test_loss", "retention_loss")  # of which the base's value is recorded before step 0
KNOWN = [name for name in METRICS if not name.startswith("base_")]  # of a base, no arm is better than another


def is_higher_better(metric: str) -> bool | None:
    """The direction of a metric that the lab takes of every run; None of a count, and of anybody's own measure."""
    if metric.startswith("seconds."):
        return False
    if metric not in (*METRICS, "peak_memory_bytes") or not metric.endswith((*HIGHER, *LOWER)):
        return None
    return metric.endswith(HIGHER)


def direction(name: str, metric: str, declared: bool | None) -> bool:
    """True where higher is better, of the study `name`; raises UsageError for what contradicts the metric.

    Of a metric whose direction the lab knows none need be declared, of any other it must be.
    """
    known = is_higher_better(metric)
    if known is None and declared is None:
        raise UsageError(
            f"metric={metric} of {name} is none whose direction is known{nearest(metric, KNOWN) or '.'} Of a measure "
            "of your own, declare higher_is_better."
        )
    if known is not None and declared not in (None, known):
        raise UsageError(
            f"higher_is_better={declared} of {name} contradicts metric={metric}, of which "
            f"{'higher' if known else 'lower'} is better; leave it out."
        )
    return bool(known if declared is None else declared)


def check_selection(study: Study) -> None:
    """Raise UsageError for what rates cannot be chosen by, or a margin cannot be a share of.

    Rates are chosen where the selection metric is lowest, and a gain is over the base's value of it.
    """
    if is_higher_better(study.selection_metric):
        raise UsageError(
            f"selection_metric={study.selection_metric} of {study.name}: learning rates are chosen where it is lowest, "
            "and of this one higher is better; choose them by a loss, such as val_loss."
        )
    if margin.parse(study.margin)[1] == "gain" and study.selection_metric not in WITH_BASE:
        raise UsageError(
            f"margin={study.margin!r} of {study.name} is a share of what training gains over the base, and of "
            f"selection_metric={study.selection_metric} no run records the base's; write it as a share of the loss "
            f"('1%'), as a number, or give a selection_metric of {', '.join(WITH_BASE)}."
        )
