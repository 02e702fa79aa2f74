"""Aims of a study, checked one by one against what its runs came to: reached, missed, or not to be seen yet."""

from collections.abc import Sequence

from lab.report.analysis import Analysis
from lab.report.cells import verdict_of
from lab.report.comparison import Comparison
from lab.report.document import counted, number
from lab.report.run import Run
from lab.report.switching import Switching
from lab.verdict.aim import RETURNS, SWITCHES, Aim


def in_words(analysis: Analysis) -> list[str]:
    """A sentence for each declared aim; a difference of means that reaches one is no verdict."""
    return [f"{aim.words}: {_checked(aim, analysis)}." for aim in analysis.aims]


def _checked(aim: Aim, analysis: Analysis) -> str:
    if aim.arm is None or aim.other is None:
        return _seen(aim, analysis)
    row, metric = _row(aim, analysis), analysis.judgement.metric
    values = [value for arm in analysis.arms if arm.name == aim.other for value in arm.values(metric)]
    if row is None:
        return "not checked, since the two are in no contrast and neither is the baseline"
    if row.statistics.mean is None or not values:
        return "not to be seen, since no seed was completed by both"
    flip = -1 if (row.arm_a, row.arm_b) == (aim.other, aim.arm) else 1
    worse = flip * analysis.judgement.sign * row.statistics.mean
    size = abs(sum(values) / len(values))
    # Of a mean of 0 there is no share: within any is only what is no worse.
    reached = worse < 0 if aim.share is None else worse <= aim.share * size
    by = f"{100 * abs(worse) / size:.2f} %" if size else number(abs(worse))
    said = f"{by} {'worse' if worse > 0 else 'better'} over {counted(row.statistics.pairs, 'pair')}"
    return f"{'reached' if reached else 'missed'} by the means, {said} (verdict: {verdict_of(row)})"


def _row(aim: Aim, analysis: Analysis) -> Comparison | None:
    """The row of the primary metric that compares the two arms, judged or described."""
    rows = [*analysis.contrasts, *analysis.described]
    return next((row for row in rows if {row.arm_a, row.arm_b} == {aim.arm, aim.other}), None)


def _seen(aim: Aim, analysis: Analysis) -> str:
    """Whether something happened in any run of the arms; of a rank's fall, where it was largest."""
    runs = [
        (arm.name, run, own) for arm in analysis.arms for run in arm.runs if (own := analysis.switching.get(run.path))
    ]
    if not runs:
        return "not to be seen, since no completed run has a policy that switches"
    if aim.words in (SWITCHES, RETURNS):
        return _counted(aim.words, runs)
    falls = [(own.fall, name, run) for name, run, own in runs if own.fall is not None]
    if not falls:
        return "missed: the mean rank fell in no run"
    (before, after), name, run = max(falls, key=lambda each: each[0][0].rank - each[0][1].rank)
    return (
        f"reached in {len(falls)} of {len(runs)} runs; most in {name}, seed {run.record.seed}: a mean rank of "
        f"{number(before.rank, 1)} after step {before.step}, {number(after.rank, 1)} after step {after.step}"
    )


def _counted(words: str, runs: Sequence[tuple[str, Run, Switching]]) -> str:
    back = words == RETURNS
    counts = [(own.returned + own.rolled_back if back else own.switched, name) for name, _, own in runs]
    having = list(dict.fromkeys(name for count, name in counts if count))
    what = "returns" if back else "layers that switched"
    if not having:
        return f"missed: {what} in no run"
    of = f"{sum(count > 0 for count, _ in counts)} of {len(runs)} runs ({', '.join(having)})"
    return f"reached: {sum(count for count, _ in counts)} {what} in {of}"
