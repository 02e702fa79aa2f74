"""Forgetting at equal loss: what each arm kept of what the base knew, and whether protecting directions kept more."""

import math
from collections.abc import Sequence
from typing import Any

from lab.errors import UsageError
from lab.record.forgetting import at_loss
from lab.report.analysis import Analysis
from lab.report.arms import Arm
from lab.report.comparison import Comparison
from lab.report.document import MISSING, Block, Paragraph, Table, number, span
from lab.report.run import Run
from lab.report.statistics import mean_sd

METRIC = "equal_loss_forgetting"
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from the base's validation loss to the lowest that every run reached


def curve(run: Run) -> tuple[list[float], list[float]]:
    """(validation loss, forgetting) at each evaluation of a run, the base first; empty where it has no curve.

    An evaluation that lacks either is left out; without that of the base, above which forgetting is, there is none.
    """
    losses, retained = (run.retention.get(name, []) for name in ("val_loss", "retention_loss"))
    rows = list(zip(losses, retained, strict=True)) if losses and retained else []
    if not rows or None in rows[0]:
        return [], []
    both = [(loss, kept) for loss, kept in rows if loss is not None and kept is not None]
    return [loss for loss, _ in both], [kept - both[0][1] for _, kept in both]


def common_level(arms: Sequence[Arm]) -> tuple[float, float] | None:
    """(base, level): validation loss at the start, and the lowest that every run of every arm came down to."""
    curves = [losses for arm in arms for run in arm.runs if (losses := curve(run)[0])]
    if not curves:
        return None
    return math.fsum(losses[0] for losses in curves) / len(curves), max(min(losses) for losses in curves)


def at_level(arm: Arm, level: float) -> list[float]:
    """An arm's forgetting where its runs first came down to a validation loss."""
    values = (at_loss(*curve(run), level) for run in arm.runs)
    return [value for value in values if value is not None]


def curves_table(analysis: Analysis) -> Table | None:
    """Forgetting at validation losses that every run came down to, and at the end; means over seeds."""
    common = common_level(analysis.arms)
    if common is None:
        return None
    base, lowest = common
    levels = [*(base + share * (lowest - base) for share in SHARES[:-1]), lowest]
    rows = [
        [
            arm.name,
            *(number(mean_sd(at_level(arm, level))[0]) for level in levels),
            number(mean_sd(arm.values("forgetting"))[0]),
            number(mean_sd(arm.values("val_loss"))[0]),
            protected(arm.runs) or ("nothing" if arm.runs else MISSING),
        ]
        for arm in analysis.arms
    ]
    columns = ["arm", *(f"at {level:.3f}" for level in levels), "at the end", "validation loss there", "protected"]
    caption = (
        "Forgetting (loss on the retention text above the base's, nats per token) where the validation loss first came "
        f"down to a value, read between evaluations: {', '.join(f'{share:.0%}' for share in SHARES)} of the way from "
        f"the base's {base:.3f} to {lowest:.3f}, the lowest that every run reached. Described, not judged."
    )
    return Table("forgetting", caption, columns, rows, text=("protected",), screen=("protected",))


def protected(runs: Sequence[Run]) -> str | None:
    """What an arm's runs kept of principal directions, as they recorded it; None where they kept nothing."""
    guards = [
        [account for account in (run.record.spectral.get("guard") or {}).values() if account["steps"]] for run in runs
    ]
    if any(guards):
        steps = sum(account["steps"] for of_run in guards for account in of_run)
        removed = math.fsum(account["removed"] for of_run in guards for account in of_run) / steps
        return f"{span(map(len, guards))} layers guarded, {removed:.0%} of the updates' energy taken off"
    kept = [run.record.spectral.get("osf") or {} for run in runs]
    if any(kept):
        leaks = [layer["leak"] for of_run in kept for layer in of_run.values() if layer["leak"] is not None]
        worst = f", up to {max(leaks):.1%} of a change's energy on what they keep" if leaks else ""
        return f"{span(map(len, kept))} layers by OSF{worst}"
    try:
        frozen = [{row["layer"] for row in _deltas(run)} for run in runs]
    except UsageError:  # a problem of the run, which the report lists
        return "not measurable"
    return f"{span(map(len, frozen))} layers frozen under a pair" if any(frozen) else None


def keeps_principal(runs: Sequence[Run]) -> bool:
    """True where an arm's runs kept principal directions; a pair that starts from zero keeps none (LoRA, in effect)."""
    for run in runs:
        guards = (run.record.spectral.get("guard") or {}).values()
        if run.record.spectral.get("osf") or any(account["steps"] for account in guards):
            return True
    try:
        # Of a weight's smallest directions, the tail is what the others hold; of a product of 0 it is all.
        return any(row["tail"] < 1 for run in runs for row in _deltas(run))
    except UsageError:  # a problem of the run, which the report lists
        return False


def _deltas(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.rows("switches.jsonl") if row["to"] == "delta"]


def thesis(analysis: Analysis) -> str | None:
    """Seed 001's thesis as the verdicts leave it: that protecting principal directions preserves what was learned."""
    by_name = {arm.name: arm for arm in analysis.arms}
    rows = [
        row
        for row in analysis.contrasts
        if row.metric == METRIC and row.arm_a in by_name and keeps_principal(by_name[row.arm_a].runs)
    ]
    if not rows:
        return None
    words = {
        "a_better": "keeps more than", "b_better": "keeps less than", "equivalent": "keeps as much as",
        "inconclusive": "is undecided against", "withheld": "has no verdict against",
    }  # fmt: skip
    said = "; ".join(f"{row.arm_a} {words[row.verdict]} {row.arm_b}" for row in rows)
    return (
        f"Protecting principal directions preserves what was learned (seed 001): {_ending(rows)}. At equal loss {said}."
    )


def _ending(rows: Sequence[Comparison]) -> str:
    """What verdicts on arms that protect come to."""
    verdicts = {row.verdict for row in rows} - {"withheld"}
    if not verdicts:
        return "not judged here"
    if {"a_better", "b_better"} <= verdicts:
        return "it depends on how they are protected"
    if "a_better" in verdicts:
        return "shown" if verdicts == {"a_better"} else "shown for some ways of protecting them, and for the others not"
    if "b_better" in verdicts:
        return (
            "not so; here it preserved less" if verdicts == {"b_better"} else "not shown, and for some ways the reverse"
        )
    if verdicts == {"equivalent"}:
        return "not so, within the margin: it made no difference"
    return "not shown"


def section(analysis: Analysis) -> tuple[list[Block | None], list[Block | None]]:
    """What stands before the figure, and behind it."""
    said = thesis(analysis)
    return [Paragraph(said)] if said else [], [curves_table(analysis)]
