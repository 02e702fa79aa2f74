"""Calibration of the whole procedure: how often a baseline that went through it once more came out different."""

from collections.abc import Sequence
from pathlib import Path

from scipy import special

from lab.errors import UsageError
from lab.report.analysis import analysis_of
from lab.report.comparison import Comparison
from lab.report.document import Block, Paragraph, Table, number, signed
from lab.report.sentences import is_one_training
from lab.report.statistics import LEVEL
from lab.report.study import load_study


def calibration(directories: Sequence[Path]) -> list[Block]:
    """A row per study with an A/A arm, and the share that came out different, with its exact interval.

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
    different = sum(row.verdict in ("a_better", "b_better") for _, row in rows)
    cells = [
        [
            name,
            str(row.statistics.pairs),
            signed(row.statistics.mean),
            number(row.statistics.margin),
            row.verdict.replace("a_better", "better than itself").replace("b_better", "worse than itself"),
        ]
        for name, row in rows
    ]
    low, high = interval(different, len(rows))
    share = different / len(rows)
    summary = (
        f"{different} of {len(rows)} baselines came out different from themselves: {100 * share:.0f} %, "
        f"95 % interval {100 * low:.0f} to {100 * high:.0f} %; a verdict's level is {100 * LEVEL:.0f} %."
    )
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
