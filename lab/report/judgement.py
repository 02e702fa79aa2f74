"""Judgement: the metric, baseline, contrasts and margin declared by a study, or by defaults and the command line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lab.errors import UsageError, nearest
from lab.record.study import MOST_CONTRASTS, Study
from lab.report import statistics
from lab.report.arms import Arm
from lab.report.defaults import default_arm

UNDECLARED_MARGIN = "1%"  # of the baseline's mean: issue 6


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """By what the arms are judged, and whether that was fixed before the runs."""

    metric: str
    higher_is_better: bool
    baseline: str | None
    contrasts: tuple[str, ...]
    margin: float | None  # in units of the metric
    declared: bool
    notes: tuple[str, ...] = ()
    opponents: Mapping[str, str] = field(default_factory=dict)  # arm -> what it is compared with, if not the baseline

    @property
    def sign(self) -> int:
        """The factor that makes lower better: -1 for a metric of which higher is better, else 1."""
        return -1 if self.higher_is_better else 1


def judgement_of(
    study: Study | None, arms: Sequence[Arm], *, baseline: str | None = None, margin: str | float | None = None
) -> Judgement:
    """By what to judge: what the study declared, or for a plain multirun the defaults' arm and 1 % of its loss.

    `baseline` and `margin` are the command line's, and noted where they replace a declaration.
    Raises UsageError for a baseline that is no arm, or a margin that is no positive number or percentage.
    """
    names, notes = [arm.name for arm in arms], list[str]()
    chosen: str | None
    wanted: str | float
    if study:
        metric, chosen, wanted = study.metric, study.baseline, study.margin
        contrasts = list(study.contrasts)
    else:
        metric = "test_loss" if any(arm.values("test_loss") for arm in arms) else "val_loss"
        chosen, wanted, contrasts = default_arm(arms), UNDECLARED_MARGIN, []
        if metric == "val_loss":
            notes.append("no run has a test loss, so the validation loss is judged")
    if baseline is not None:
        if baseline not in names:
            raise UsageError(
                f"--baseline {baseline!r} is no arm of this study{nearest(baseline, names)}; arms: {', '.join(names)}."
            )
        if study and baseline != study.baseline:
            notes.append(f"the baseline was chosen after the runs; the study declared {study.baseline}")
        chosen = baseline
    if margin is not None:
        if study and margin != study.margin:
            notes.append(f"the margin was chosen after the runs; the study declared {study.margin}")
        wanted = margin
    if chosen is None and len(names) > 1:
        notes.append("no arm consists of the config's defaults, so nothing is judged; name one with --baseline")
    if chosen is not None and (not study or chosen != study.baseline):
        contrasts = list(names)
    contrasts = [name for name in contrasts if name in names and name != chosen]
    if len(contrasts) > MOST_CONTRASTS:
        notes.append(f"only the first {MOST_CONTRASTS} of {len(contrasts)} contrasts are judged")
    present = chosen if chosen in names else None
    return Judgement(
        metric=metric,
        higher_is_better=study.higher_is_better if study else False,
        baseline=present,
        contrasts=tuple(contrasts[:MOST_CONTRASTS]) if present else (),
        margin=margin_in_units(wanted, next((arm.values(metric) for arm in arms if arm.name == present), [])),
        declared=study is not None and baseline in (None, study.baseline) and margin in (None, study.margin),
        notes=tuple(notes),
    )


def margin_in_units(margin: str | float, baseline_values: Sequence[float]) -> float | None:
    """A margin in units of the metric: a number as it is, "1%" of the baseline's mean; None without a baseline."""
    text = str(margin).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"the margin {margin!r} is neither a positive number nor a percentage; write 0.02 or 1%.")
    if not text.endswith("%"):
        return number
    mean, _ = statistics.mean_sd(baseline_values)
    return None if mean is None else abs(mean) * number / 100
