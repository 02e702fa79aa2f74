"""Sentences of a report on pairs of runs: what a contrast shows, and what the baseline against itself does."""

from lab.report.analysis import Analysis
from lab.report.comparison import Comparison
from lab.report.document import counted, number, p_text, signed
from lab.report.statistics import AA_LEVEL, MOST_SEEDS, POWER
from lab.verdict.margin import units

DIFFERENT, SAME, UNDECIDED, NO_VERDICT = (
    *("different from itself", "no different from itself", "undecided against itself", "without a verdict"),
)
AGAINST_ITSELF = {
    "a_better": DIFFERENT, "b_better": DIFFERENT, "equivalent": SAME, "inconclusive": UNDECIDED, "withheld": NO_VERDICT,
}  # fmt: skip


def sentence(row: Comparison) -> str:
    """One contrast as a referee would put it."""
    s, name = row.statistics, row.metric.replace("_", " ")
    lost = [each for each in row.lost if each not in row.reason]
    if s.mean is None:
        return f"{row.arm_a} vs {row.arm_b}: no verdict; {'; '.join([row.reason, *lost])}."
    what = "repeated 95 % interval" if row.looked else "95 % interval"
    interval = [f"{what} {signed(s.ci_low)} to {signed(s.ci_high)}"] if s.ci_low is not None else []
    detail = "; ".join(["a − b", *interval, counted(s.pairs, "pair"), *lost, *filter(None, [row.budgets])])
    effect = f"{name} differs by {signed(s.mean)} {units(row.metric)}".rstrip() + f" ({detail})"
    p, q, rates = ("P*", "Q*", scope_of_rates(row)) if row.looked else ("p", "TOST p", "at the rates tried")
    match row.verdict:
        case "a_better" | "b_better":
            word = "better" if row.verdict == "a_better" else "worse"
            end = f"{row.arm_a} is {word} than {row.arm_b}{_said(rates)}: {effect}; Holm-adjusted {p} "
            end += f"{_equals(row.p_adjusted)}."
        case "equivalent":
            end = f"{row.arm_a} is equivalent to {row.arm_b} within ±{number(s.margin)}{_said(rates)}: {effect}; "
            end += f"Holm-adjusted {q} {_equals(row.p_equivalence_adjusted)}."
        case "inconclusive":
            more = "" if row.looked else f" {another_study(row)}"
            end = f"{row.arm_a} vs {row.arm_b} is undecided: {effect}; {row.reason}.{more}"
        case _:
            end = f"{row.arm_a} vs {row.arm_b}: no verdict, since {row.reason}; {effect}."
    return end + (f" Without a partner and left out: {', '.join(row.dropped)}." if row.dropped else "")


def scope_of_rates(row: Comparison) -> str:
    """At which learning rates a verdict holds: each arm's own best where the search says so, else those tried."""
    if row.looked is None or not row.looked.at_best:
        return "at the rates tried"
    arm, other = row.looked.arm, row.looked.other
    return f"each at its own best learning rate ({arm.rate:g} and {other.rate:g})"


def _said(rates: str) -> str:
    return f", {rates}" if rates.startswith("each") else f" {rates}"


def another_study(row: Comparison) -> str:
    """What would decide an undecided contrast, said so that nobody adds seeds to this study and looks again."""
    needed = f"about {row.seeds_to_decide}" if row.seeds_to_decide else f"more than {MOST_SEEDS}"
    return (
        f"If these are the true mean and spread, a new study of {needed} seeds, declared before its first job, would "
        f"decide it with a chance of {100 * POWER:.0f} %. Seeds added to this one and tested again are no such study: "
        "each further look raises the chance of a false verdict above the level."
    )


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def is_one_training(aa: Comparison) -> bool:
    """True where the baseline's two arms are bit for bit the same runs."""
    return bool(aa.differences) and not any(aa.differences)


def aa_paragraph(analysis: Analysis) -> str:
    """The baseline against itself in words: what its pairs differ by, what that withholds, and what it cannot say."""
    aa = analysis.aa
    own = next((arm for arm in analysis.arms if arm.name == analysis.judgement.baseline), None)
    more = f" {len(own.diverged_twins)} more diverged." if own and own.diverged_twins else ""
    if aa is None:
        return (
            "Not measured: no two completed runs of the baseline share a data order and differ in the seed."
            f"{more} Differences are read against their own interval alone."
        )
    if aa.looked is not None and is_one_training(aa):
        return (
            "The baseline went through the whole procedure once more, on tuning and verdict seeds of its own: it came "
            f"to the same learning rate, and its {len(aa.differences)} pairs are the same to the last bit, as they are "
            f"where a training draws nothing but its data order, which pairs share.{more} So nothing leaks from one "
            "arm to another; it calibrates nothing."
        )
    if aa.looked is not None:
        return (
            f"The baseline went through the whole procedure once more, on tuning and verdict seeds of its own: it came "
            f"out {AGAINST_ITSELF[aa.verdict]}. {sentence(aa)}{more} One such arm calibrates nothing; those of many "
            "studies do: lab.report --calibration counts them."
        )
    s = aa.statistics
    spread = f"standard deviation {number(s.sd)}, " if s.sd is not None else ""
    end = ""
    if s.p_value is not None:
        quiet = s.p_value >= AA_LEVEL
        end = f" A/A p {_equals(s.p_value)}, which withholds {'no verdict' if quiet else 'every verdict'}."
    return (
        f"{s.pairs} pairs of runs of {aa.arm_a} that share the data order and differ only in the seed differ in "
        f"{aa.metric.replace('_', ' ')} by {signed(s.mean)} on average ({spread}largest "
        f"{number(max(map(abs, aa.differences)))}).{more}{end} This tests that the pairing does not drift, and no "
        "more. It is no noise floor of a contrast, whose two arms may also react differently to the data order and may "
        "share the seed's draws: a contrast is read against its own interval."
    )
