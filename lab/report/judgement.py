"""Judgement: the metric, baseline, contrasts and margin declared by a study, or by defaults and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lab.errors import UsageError, nearest
from lab.record.study import MOST_CONTRASTS, Study, pair_of
from lab.report.arms import Arm
from lab.report.defaults import default_arm
from lab.verdict import margin as margins

UNDECLARED_MARGIN = "1%"  # of the baseline's mean: issue 6


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """By what the arms are judged, and whether that was fixed before the runs."""

    metric: str
    higher_is_better: bool
    baseline: str | None
    contrasts: tuple[str, ...]  # by name
    margin: float | None  # in units of the metric
    declared: bool
    notes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()  # of a declared study, in the order they are taken
    opponents: Mapping[str, str] = field(default_factory=dict)  # arm -> what it is compared with, if not the baseline
    pairs: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # contrast -> its arms, if not those

    def pair(self, contrast: str) -> tuple[str, str]:
        """The two arms of a contrast: the one it names, and its opponent or the baseline."""
        return self.pairs.get(contrast) or (contrast, self.opponents.get(contrast) or self.baseline or "")

    @property
    def judged(self) -> set[str]:
        """The arms of all contrasts, on either side, and the baseline."""
        return {name for contrast in self.contrasts for name in self.pair(contrast)} | {self.baseline or ""}

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
        if study and not same_margin(margin, study.margin):
            notes.append(f"the margin was chosen after the runs; the study declared {study.margin}")
        wanted = margin
    if chosen is None and len(names) > 1:
        notes.append("no arm consists of the config's defaults, so nothing is judged; name one with --baseline")
    if chosen is not None and (not study or chosen != study.baseline):
        contrasts = list(names)
    pairs = {each: pair_of(each, names, chosen or "") for each in contrasts}
    contrasts = [each for each, (one, other) in pairs.items() if one in names and other in names and one != other]
    if len(contrasts) > MOST_CONTRASTS:
        notes.append(f"only the first {MOST_CONTRASTS} of {len(contrasts)} contrasts are judged")
    present = chosen if chosen in names else None
    return Judgement(
        metric=metric,
        higher_is_better=study.higher_is_better if study else False,
        baseline=present,
        contrasts=tuple(contrasts[:MOST_CONTRASTS]) if present else (),
        margin=margin_in_units(wanted, next((arm for arm in arms if arm.name == present), None), metric, study),
        declared=study is not None
        and baseline in (None, study.baseline)
        and (margin is None or same_margin(margin, study.margin)),
        notes=tuple(notes),
        seeds=tuple(study.seeds) if study else (),
        pairs={each: pair for each, pair in pairs.items() if each in contrasts and each != pair[0]},
    )


def same_margin(one: str | float, other: str | float) -> bool:
    """True where two declarations of a margin say the same: `0.03` of the command line, and 0.030 of a study.

    Raises UsageError for what is no margin.
    """
    return margins.parse(_plain(one)) == margins.parse(_plain(other))


def _plain(margin: str | float) -> str | float:
    """A margin as a number where it is one: the command line gives text."""
    try:
        return float(margin)
    except ValueError:
        return str(margin)


def margin_in_units(wanted: str | float, baseline: Arm | None, metric: str, study: Study | None) -> float | None:
    """A margin in units of the metric: as the study wrote it down before its verdicts, else by the baseline's runs.

    A share of the gain, or of the loss, is of the baseline's mean; None without a baseline, or a gain. Raises
    UsageError for what is no margin.
    """
    wanted = _plain(wanted)
    if study is not None and study.margin_value is not None and same_margin(study.margin, wanted):
        return study.margin_value
    runs = baseline.runs if baseline is not None else ()
    ends = [(run.value(f"base_{metric}"), run.value(metric)) for run in runs]
    return margins.value(wanted, ends)
