"""Tables of a study whose seeds are taken one at a time: its contrasts, and its learning rates."""

from collections.abc import Sequence

from lab.record.study import RATE
from lab.report.analysis import Analysis
from lab.report.cells import interval, verdict_of, versus
from lab.report.comparison import Comparison
from lab.report.document import MISSING, Table, number, p_text, signed
from lab.verdict.margin import missing, units

STOPPED = {
    "difference": "a difference", "equivalence": "equivalence", "gave_up": "out of reach", "budget": "the budget",
    "open": "open",
}  # fmt: skip


def looks_table(analysis: Analysis, rows: Sequence[Comparison]) -> Table:
    """Contrasts whose seeds were taken one at a time."""
    columns = [
        "contrast", "pairs", "ended by", "difference", "repeated interval", "Holm P*", "Holm Q*", "tuning regret",
        "verdict",
    ]  # fmt: skip
    cells = [
        [
            versus(row),
            str(row.statistics.pairs),
            STOPPED[row.looked.judged.stopped_because] if row.looked else MISSING,
            signed(row.statistics.mean),
            interval(row.statistics.ci_low, row.statistics.ci_high),
            p_text(row.p_adjusted),
            p_text(row.p_equivalence_adjusted),
            number(row.looked.regret if row.looked else None),
            verdict_of(row),
        ]
        for row in rows
    ]
    unit = "" if analysis.judgement.margin is None else f" Margin ±{number(analysis.judgement.margin)}."
    caption = (
        f"Differences a − b in {analysis.judgement.metric}, paired by seed, looked at after every seed from the fourth."
        f"{unit} P* and Q* hold for any stopping; the interval covers at all looks together in 95 % of studies; the "
        "tuning regret is what the two learning rates may cost."
    )
    return Table("contrasts", caption, columns, cells, text=("ended by", "verdict"), screen=("tuning regret",))


def tuning_table(analysis: Analysis) -> Table | None:
    """How each arm's learning rate was chosen, and what the choice may have cost."""
    arms = [arm for arm in (*analysis.arms, *filter(None, [analysis.again])) if arm.tuned and arm.tuned.curve]
    if not arms:
        return None
    study = analysis.study.declared
    metric = study.selection_metric if study else "val_loss"
    cells, lost, unit = [], missing(metric), units(metric)
    for arm in arms:
        tuned = arm.tuned
        assert tuned is not None
        curve = ", ".join(f"{rate:g}: {lost if loss is None else number(loss)}" for rate, loss in tuned.curve.items())
        cells.append(
            [
                "A/A" if arm is analysis.again else arm.name,
                "–" if tuned.rate is None else f"{tuned.rate:g}",
                tuned.chosen_by,
                number(tuned.curvature, 1),
                number(tuned.regret),
                number(tuned.to_cliff, 2),
                curve,
            ]
        )
    columns = ["arm", "learning rate", "chosen by", "curvature", "regret", "decades to the cliff", "losses tried"]
    key = f" ({study.rate})" if study and study.rate != RATE else ""
    by = metric.replace("_", " ") + (f" ({unit})" if unit else "")
    caption = f"Learning rates{key}, chosen by {by} of tuning seeds that no verdict uses."
    if study and not study.refine:
        cells = [[row[0], row[1], row[2], row[-1]] for row in cells]
        columns = [columns[0], columns[1], columns[2], columns[-1]]
    else:
        caption += (
            " Curvature is per decade²; the regret is what nine choices in ten cost at most; the cliff is the "
            "largest rate from the best on that did not lose."
        )
    return Table("tuning", caption, columns, cells, text=("chosen by", "losses tried"), screen=("losses tried",))
