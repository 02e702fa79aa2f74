"""Recommendation of a rank: how far the verdicts license stepping down, and what beats every rank that was tried."""

from collections.abc import Mapping, Sequence

from lab.report.comparison import Comparison
from lab.report.document import number, signed
from lab.report.judgement import Judgement
from lab.verdict.margin import units

WORDS = {"b_better": "was found worse", "inconclusive": "is undecided"}


def step_down(verdicts: Mapping[int, str], reference: int) -> tuple[int | None, str]:
    """The smallest rank that is enough, stepping down from the largest, and why; None where no verdict licenses one.

    `verdicts` maps a judged rank to the verdict of its contrast with `reference`. A larger rank must not pay, and every
    smaller one down to the answer must be equivalent: a lone equivalence below a rank that is worse is luck.
    """
    enough = reference
    for rank in sorted(verdicts, reverse=True):
        verdict = verdicts[rank]
        if verdict == "a_better":
            return rank, f"rank {rank}: it was found better than rank {reference}; no smaller rank was compared with it"
        if verdict == "equivalent" or (rank > reference and verdict == "b_better"):
            enough = min(enough, rank)
            continue
        found = WORDS.get(verdict, "has no verdict")
        if verdict != "b_better" and enough == reference:
            return (
                None,
                f"no rank is recommended: stepping down from the largest, rank {rank} against {reference} {found}",
            )
        return enough, _enough(enough, reference, f"the next, rank {rank}, {found}")
    if not verdicts:
        return None, "no rank is recommended: no rank was judged"
    return enough, _enough(enough, reference, "no smaller one was judged")


def _enough(rank: int, reference: int, below: str) -> str:
    down = (
        ""
        if rank == reference
        else f"every judged rank from {reference} down to it was found equivalent to {reference}, and "
    )
    return f"rank {rank}, enough among the LoRA ranks tried: {down}{below}"


def beyond(rows: Sequence[Comparison], ranks: Sequence[str], judgement: Judgement) -> list[str]:
    """What is better than the baseline by more than the margin and is no judged rank, each with its number."""
    found = []
    for row in rows:
        s = row.statistics
        if row.metric != judgement.metric or row.kind == "aa" or (row.kind == "contrast" and row.arm_a in ranks):
            continue
        if s.mean is None or s.margin is None or judgement.sign * s.mean >= -s.margin:
            continue
        interval = "" if s.ci_low is None else f"; 95 % interval {signed(s.ci_low)} to {signed(s.ci_high)}"
        lost = "".join(f"; {each}" for each in row.lost)
        how = "judged" if row.kind == "contrast" else "described and not judged"
        found.append(
            f"{row.arm_a}, {how}, is better than {row.arm_b} by {number(abs(s.mean))} {units(row.metric)}".rstrip()
            + f" (a − b {signed(s.mean)}{interval}; {s.pairs} pairs{lost}), more than the margin of "
            f"±{number(s.margin)}, so that enough among these ranks does not match it"
        )
    return found
