"""Metrics that a study may be judged by: which way is better, and what a job needs so that it comes to a value."""

from collections.abc import Callable, Mapping
from typing import Any

from lab.errors import UsageError, nearest
from lab.record import METRICS, RunRecord
from lab.record.study import Study
from lab.verdict import margin

HIGHER = ("accuracy", "accuracy_low", "accuracy_high")  # ends of names
LOWER = ("loss", "bpb", "perplexity", "forgetting", "bytes")
WITH_BASE = ("val_loss", "test_loss", "retention_loss")  # of which the base's value is recorded before step 0
NUMBERS = (  # of a record, besides its metrics
    *("seconds.total", "seconds.init", "seconds.train", "seconds.eval", "seconds.analysis", "peak_memory_bytes"),
    *("trainable_params", "total_params", "steps", "tokens", "labelled_tokens", "switches"),
)
ANSWERS = ("test_answers_judged", "test_answers_unmatched", "test_references_unmatched", "test_prompts_cut")
RETENTION = ("retention_loss", "forgetting", "equal_loss_forgetting")
LEARNED = ("learned_", "first_step_")  # beginnings of the names of what lab.instruments.learned measures
# Of a base, no arm is better than another.
KNOWN = [*(name for name in METRICS if not name.startswith("base_")), *NUMBERS, *ANSWERS]


def is_higher_better(metric: str) -> bool | None:
    """The direction of a metric that the lab takes of every run; None of a count, and of anybody's own measure."""
    if metric.startswith("seconds."):
        return False
    if metric not in (*METRICS, *NUMBERS) or not metric.endswith((*HIGHER, *LOWER)):
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
            f"{'higher' if known else 'lower'} is better; declare the study anew without it."
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


def value_of(run: RunRecord, metric: str) -> float | None:
    """A metric of a run, or a number of its record; None where it was not measured."""
    value = run.metrics.get(metric)
    if value is None and metric in NUMBERS:
        own, _, account = metric.partition(".")
        value = run.seconds.get(account) if account else getattr(run, own)
    return value


def check_measured(study: Study, config: Mapping[str, Any], has_answers: Callable[[], bool]) -> None:
    """Raise UsageError where the jobs of a plain config would come to no value of what the study judges or tunes by.

    `has_answers` is asked whether the data has answers to judge, where that matters.
    """
    for key, metric in (("metric", study.metric), ("selection_metric", study.selection_metric)):
        if metric in config["metrics"]:
            continue
        if metric not in KNOWN and not metric.startswith(LEARNED):
            known = [*KNOWN, *config["metrics"]]
            raise UsageError(f"{key}={metric} is measured by no run{nearest(metric, known) or f'; known are {known}.'}")
        if lacking := _lacking(metric, config, has_answers):
            raise UsageError(f"{key}={metric} would be measured by no run: {lacking}.")


def _lacking(metric: str, config: Mapping[str, Any], has_answers: Callable[[], bool]) -> str | None:
    """What a config lacks so that its runs measure a metric, and the remedy; None where it lacks nothing."""
    evaluate, data = config["evaluate"], config["data"]
    tested, kept, learned = metric.startswith("test_"), metric in RETENTION, metric.startswith(LEARNED)
    if (tested or kept or learned) and not evaluate["test"]:
        return "evaluate.test=false evaluates the validation side alone; give evaluate.test=true"
    if tested and not _has_test_side(data):
        return f"data={data.get('name')} has no test side; name one, or another data set by data.test"
    if metric.startswith("test_accuracy") or metric in ANSWERS:
        if not evaluate["accuracy"]:
            return "evaluate.accuracy=false looks at no answers; give evaluate.accuracy=true"
        if not has_answers():
            return f"data={data.get('name')} has no answers to judge; give data.answer_pattern"
    if kept and data.get("retention") is None:
        return "there is no text to forget; name one with data.retention"
    if metric == "equal_loss_forgetting" and evaluate["forgetting_at"] is None:
        return "it is read off a curve at a loss; give evaluate.forgetting_curve=true and evaluate.forgetting_at"
    if learned and config["method"] != "lora":
        return f"method={config['method']} learns no pair of factors"
    return None


def _has_test_side(data: Mapping[str, Any]) -> bool:
    """False where the settings of a data set say that it has none."""
    if isinstance(data.get("test"), Mapping):
        return True
    return not any(key in data and not data[key] for key in ("test_path", "test_split", "test_examples"))
