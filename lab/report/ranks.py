"""Rank sweep, its four questions: where returns diminish, what is enough, what it costs, which rank to take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.report.arms import Arm, ran_in_blocks
from lab.report.comparison import Comparison, aa_couples
from lab.report.document import MISSING
from lab.report.judgement import Judgement
from lab.report.knee import Knee, knee
from lab.report.recommendation import beyond, step_down
from lab.report.statistics import FEWEST_PAIRS, half_width, mean_sd

FEWEST_RANKS = 3  # two points make no curve


@dataclass(frozen=True, kw_only=True)
class RankAnswers:
    """Answers of a sweep over uniform ranks; None where it has none."""

    ranks: dict[int, str]  # rank -> arm
    base: float | None  # the metric of the untrained base, rank 0
    knee: Knee
    parameters_per_rank: float | None
    largest_deviation: float | None  # of the parameter count from that line, as a share
    seconds_per_doubling: float | None  # of training time
    seconds_low: float | None
    seconds_high: float | None
    seconds_against_itself: float | None  # of the baseline's A/A pairs, by how much they differed; None without any
    in_turns: bool  # False: arms ran one after another, so their seconds also compare the hours
    beside: bool  # jobs ran beside each other, so that each took from the others
    recommended: int | None
    recommendation: str


def rank_answers(
    arms: Sequence[Arm], judgement: Judgement, rows: Sequence[Comparison], *, beside: bool = False
) -> RankAnswers | None:
    """The answers where at least three arms have one rank each and nothing else tells them apart; else None.

    `beside` says that the study's jobs ran beside each other.
    """
    by_rank: dict[int, Arm] = {}
    for arm in arms:
        ranks = {run.rank for run in arm.runs}
        if len(ranks) == 1 and (rank := ranks.pop()) is not None:
            if rank in by_rank:
                return None  # two arms share a rank, so something else is swept too
            by_rank[rank] = arm
    if len(by_rank) < FEWEST_RANKS:
        return None
    by_rank = dict(sorted(by_rank.items()))
    base = _base(by_rank, judgement.metric)
    sign = judgement.sign
    table = {rank: [sign * value for value in values] for rank, values in _shared(by_rank, judgement.metric).items()}
    parameters = {rank: arm.runs[0].record.trainable_params for rank, arm in by_rank.items()}
    per_rank, deviation = _line({rank: count for rank, count in parameters.items() if count})
    seconds, low, high = _per_doubling(_shared(by_rank, "seconds.train"))
    recommended, why = _recommend(by_rank, judgement, rows)
    return RankAnswers(
        ranks={rank: arm.name for rank, arm in by_rank.items()},
        base=base,
        knee=knee(table, None if base is None else sign * base),
        parameters_per_rank=per_rank,
        largest_deviation=deviation,
        seconds_per_doubling=seconds,
        seconds_low=low,
        seconds_high=high,
        seconds_against_itself=_against_itself(arms, judgement),
        beside=beside,
        in_turns=not ran_in_blocks(list(by_rank.values())),
        recommended=recommended,
        recommendation=why,
    )


def _shared(by_rank: dict[int, Arm], metric: str) -> dict[int, list[float]]:
    """The metric by rank, over the seeds that every rank completed, in one order."""
    values = {
        rank: {run.pair: value for run in arm.runs if (value := run.value(metric)) is not None}
        for rank, arm in by_rank.items()
    }
    pairs = sorted(set.intersection(*map(set, values.values())), key=str)
    return {rank: [by_pair[pair] for pair in pairs] for rank, by_pair in values.items()}


def _base(by_rank: dict[int, Arm], metric: str) -> float | None:
    """The base's own value of the metric; None unless every run agrees, as runs of one base must."""
    values = [value for arm in by_rank.values() for value in arm.values(f"base_{metric}")]
    runs = sum(len(arm.runs) for arm in by_rank.values())
    # A GPU may sum in another order from run to run; that is all the disagreement one base may show.
    agrees = len(values) == runs and max(values) - min(values) <= 1e-3 * abs(max(values))
    return mean_sd(values)[0] if agrees else None


def _line(parameters: dict[int, int]) -> tuple[float | None, float | None]:
    """Parameters per unit of rank by least squares through the origin, and the largest relative deviation."""
    if len(parameters) < FEWEST_RANKS:
        return None, None
    slope = sum(r * p for r, p in parameters.items()) / sum(r * r for r in parameters)
    return slope, max(abs(p - slope * r) / (slope * r) for r, p in parameters.items())


def _per_doubling(seconds: dict[int, list[float]]) -> tuple[float | None, float | None, float | None]:
    """Seconds of training per doubling of the rank: a slope per seed, their mean and its 95 % t interval."""
    n = len(next(iter(seconds.values())))
    if n == 0:
        return None, None, None
    x = np.log2(list(seconds))
    slopes = np.polyfit(x, np.array(list(seconds.values())), 1)[0]
    mean, sd = mean_sd(slopes.tolist())
    # Equal times leave a slope of rounding size, which no interval should dignify.
    if mean is None or sd is None or n < FEWEST_PAIRS or sd < 1e-9 * max(map(max, seconds.values())):
        return None if mean is None else round(mean, 9), None, None
    half = half_width(sd, n)
    return mean, mean - half, mean + half


def _against_itself(arms: Sequence[Arm], judgement: Judgement) -> float | None:
    """Seconds of training by which the baseline's A/A pairs differed in the mean."""
    couples = [each for arm in arms if arm.name == judgement.baseline for each in aa_couples(arm)]
    both = [(run.value("seconds.train"), twin.value("seconds.train")) for run, twin in couples]
    mean, _ = mean_sd([x - y for x, y in both if x is not None and y is not None])
    return None if mean is None else abs(mean)


def _recommend(by_rank: dict[int, Arm], judgement: Judgement, rows: Sequence[Comparison]) -> tuple[int | None, str]:
    """The rank that the verdicts license stepping down to, and what is better than every one of them."""
    verdicts = {row.arm_a: row.verdict for row in rows if row.kind == "contrast" and row.arm_b == judgement.baseline}
    reference = next((rank for rank, arm in by_rank.items() if arm.name == judgement.baseline), None)
    if reference is None:
        return None, "no rank is recommended: the baseline is no single rank"
    judged = {rank: verdicts[arm.name] for rank, arm in by_rank.items() if arm.name in verdicts}
    rank, why = step_down(judged, reference)
    return rank, ". ".join([why, *beyond(rows, [arm.name for arm in by_rank.values()], judgement)])


def in_words(answers: RankAnswers, contrasts: Sequence[Comparison]) -> list[str]:
    """The four questions of a rank sweep, answered in words and numbers."""
    knee, by_arm = answers.knee, {row.arm_a: row for row in contrasts}
    if knee.rank is None:
        lines = [f"Where do returns diminish? No answer: {knee.reason}."]
    else:
        interval = MISSING if knee.low is None else f"{knee.low} to {knee.high}"
        lines = [f"Where do returns diminish? At rank {knee.rank} (95 % interval {interval}): {knee.reason}."]
    answer = {"equivalent": "Yes", "a_better": "No, it is better", "b_better": "No, it is worse"}
    for rank, name in answers.ranks.items():
        if name in by_arm:
            row = by_arm[name]
            lines.append(f"Is rank {rank} equivalent to {row.arm_b}? {answer.get(row.verdict, 'Open')} ({row.reason}).")
    if answers.parameters_per_rank is None or answers.largest_deviation is None:
        lines.append("Is the parameter count linear in the rank? Not recorded.")
    else:
        off = 100 * answers.largest_deviation
        lines.append(
            f"Is the parameter count linear in the rank? {'Yes' if off < 0.1 else 'No'}: "
            f"{answers.parameters_per_rank:,.0f} per unit of rank, at most {off:.2g} % off the line."
        )
    lines.append(f"Does training time depend on the rank? {_time_in_words(answers)}")
    return [*lines, f"Recommended: {answers.recommendation}."]


def _time_in_words(answers: RankAnswers) -> str:
    mean, low, high = answers.seconds_per_doubling, answers.seconds_low, answers.seconds_high
    if mean is None:
        return "Not recorded for a seed that every rank completed."
    each = f"each doubling of the rank took {mean:+.2f} s"
    if low is None or high is None:
        return f"Open: {each}; too few seeds, or no spread, to give an interval."
    each += f" (95 % interval {low:+.2f} to {high:+.2f})"
    if not answers.in_turns:
        return f"Open: {each}, but the ranks ran one after another, so that the hour may be in it."
    if low <= 0 <= high:
        return f"Not measurably: {each}."
    ranks, itself = list(answers.ranks), answers.seconds_against_itself
    over = abs(mean) * math.log2(ranks[-1] / ranks[0])
    each += f", {over:.1f} s from rank {ranks[0]} to {ranks[-1]}"
    if itself is not None and itself >= over:
        return f"Open: {each}, while the baseline against itself differed by {itself:.1f} s, so that the hour is in it."
    if itself is None and answers.beside:
        return f"Open: {each}, but jobs ran beside each other and no A/A pair says what that does to their seconds."
    return f"Yes: {each}."
