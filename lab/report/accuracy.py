"""Accuracy: the share of right answers of every arm, before and after, and what the number of questions leaves open."""

from collections.abc import Sequence
from dataclasses import dataclass

from lab.record.proportion import wilson
from lab.report.analysis import Analysis
from lab.report.arms import Arm
from lab.report.document import MISSING, Table, number
from lab.report.statistics import mean_sd

METRIC, BASE, QUESTIONS = "test_accuracy", "base_test_accuracy", "test_answers_judged"


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers of an arm, one per seed, all over the same number of questions."""

    shares: Sequence[float]
    questions: int | None  # None where runs differ in it, or say none
    base: float | None  # before training; None where runs differ in it, or say none

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.shares) / len(self.shares)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the mean share over the questions of one run: seeds share them."""
        return wilson(self.mean, self.questions) if self.questions else None


def accuracy_of(arm: Arm) -> Accuracy | None:
    """The accuracy of an arm; None where no run measured it."""
    shares = arm.values(METRIC)
    if not shares:
        return None
    questions, base = _shared(arm.values(QUESTIONS)), _shared(arm.values(BASE))
    return Accuracy(shares, None if questions is None else int(questions), base)


def _shared(values: Sequence[float]) -> float | None:
    return values[0] if len(set(values)) == 1 else None


def percent(share: float | None) -> str:
    """A share as a reader sees it."""
    return number(None if share is None else 100 * share, 1)


def accuracy_table(analysis: Analysis) -> Table | None:
    """A row per arm that answered."""
    rows = []
    for arm in analysis.arms:
        found = accuracy_of(arm)
        if found is None:
            continue
        low, high = found.interval or (None, None)
        _, sd = mean_sd(found.shares)
        rows.append(
            [
                arm.name,
                str(len(found.shares)),
                MISSING if found.questions is None else f"{found.questions:,}",
                percent(found.base),
                percent(found.mean),
                percent(sd),
                MISSING if low is None else f"{percent(low)} to {percent(high)}",
            ]
        )
    if not rows:
        return None
    columns = ["arm", "runs", "questions", "base (%)", "accuracy (%)", "SD over seeds", "95 % interval"]
    caption = (
        "Right answers on the test side. The interval is Wilson's, of the mean share over the questions of one run: "
        "seeds share the questions, so more seeds do not narrow it."
    )
    return Table("accuracy", caption, columns, rows)


def evaluations_table(analysis: Analysis) -> Table | None:
    """What lab.evaluate measured, a column per task and measure, mean over seeds; None where it was never called."""
    names = list(dict.fromkeys(name for arm in analysis.arms for run in arm.runs for name in run.evaluations))
    if not names:
        return None
    rows = []
    for arm in analysis.arms:
        found = [[run.evaluations[name] for run in arm.runs if name in run.evaluations] for name in names]
        cells = [f"{number(mean_sd(values)[0])} (n = {len(values)})" if values else MISSING for values in found]
        rows.append([arm.name, *cells])
    caption = "What lab.evaluate measured with the language model evaluation harness: means over the runs evaluated."
    return Table("evaluations", caption, ["arm", *names], rows)
