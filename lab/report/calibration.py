"""Calibration of the whole procedure: how often a baseline that went through it once more came out different."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scipy import special

from lab.errors import UsageError
from lab.report.analysis import analysis_of
from lab.report.comparison import Comparison
from lab.report.document import Block, Paragraph, Table, number, signed
from lab.report.sentences import AGAINST_ITSELF, DIFFERENT, NO_VERDICT, SAME, UNDECIDED, is_one_training
from lab.report.statistics import LEVEL
from lab.report.study import load_study

WORDS = AGAINST_ITSELF | {"a_better": "better than itself", "b_better": "worse than itself"}


def calibration(directories: Sequence[Path]) -> list[Block]:
    """A row per study with an A/A arm; of those with a verdict the share that came out different, its exact interval.

    Raises UsageError for a directory without a study, or where none has an A/A arm that was judged.
    """
    rows: list[tuple[str, Comparison]] = []
    without: list[str] = []
    same: list[str] = []
    for directory in directories:
        study = load_study(directory)
        if not study.runs:
            raise UsageError(f"{directory} holds no run of a study.")
        aa = analysis_of(study).aa
        if aa is None or aa.looked is None or aa.looked.judged.seeds == 0:
            without.append(study.name)
        elif is_one_training(aa):
            same.append(study.name)
        else:
            rows.append((f"{study.name} ({study.path.name})", aa))
    if not rows:
        raise UsageError(
            f"no A/A arm was judged in {', '.join([*without, *same])}; studies from procedure 2 on have one."
        )
    ends = Counter(AGAINST_ITSELF[row.verdict] for _, row in rows)
    different, judged = ends[DIFFERENT], len(rows) - ends[NO_VERDICT]
    cells = [
        [
            name,
            str(row.statistics.pairs),
            signed(row.statistics.mean),
            number(row.statistics.margin),
            WORDS[row.verdict],
        ]
        for name, row in rows
    ]
    summary = f"None of {len(rows)} baselines has a verdict against itself."
    if judged:
        low, high = interval(different, judged)
        others = ", ".join(f"{ends[end]} {end}" for end in (SAME, UNDECIDED))
        summary = (
            f"{different} of {judged} baselines came out different from themselves: {100 * different / judged:.0f} %, "
            f"95 % interval {100 * low:.0f} to {100 * high:.0f} %; a verdict's level is {100 * LEVEL:.0f} %. The "
            f"others: {others}."
        )
        summary += f" Not counted: {ends[NO_VERDICT]} {NO_VERDICT}." if ends[NO_VERDICT] else ""
    blocks: list[Block] = [
        Table(
            "calibration", "The baseline against itself.", ["study", "pairs", "difference", "margin", "verdict"], cells
        ),
        Paragraph(summary),
    ]
    if same:
        blocks.append(Paragraph(f"The same to the last bit, which calibrates nothing: {', '.join(same)}."))
    return blocks + ([Paragraph(f"Without a judged A/A arm: {', '.join(without)}.")] if without else [])


def interval(count: int, of: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share. Source: Clopper and Pearson 1934."""
    low = 0.0 if count == 0 else float(special.betaincinv(count, of - count + 1, level / 2))
    high = 1.0 if count == of else float(special.betaincinv(count + 1, of - count, 1 - level / 2))
    return low, high
