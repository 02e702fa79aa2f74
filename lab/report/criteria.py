"""Criteria of seed 001's phases, checked one by one on what runs recorded: met, not met, or not measurable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.errors import UsageError
from lab.report.analysis import Analysis
from lab.report.arms import Arm
from lab.report.document import Table, number
from lab.report.statistics import mean_sd

ATTACKS = (("principal_danger",), ("attack_z", "attack_lift"))  # clauses that tell one when they hold together
WORDS = {True: "met", False: "not met", None: "not measurable"}
SLOWER = 1.05  # times the baseline's seconds, up to which a run's are competitive: the seed names no number


@dataclass(frozen=True)
class Checked:
    """What became of a criterion: None where it cannot be measured, and the numbers or the reason."""

    met: bool | None
    said: str


Check = Callable[[Arm, Arm], Checked]  # an arm that may switch, and the baseline


def criteria_table(analysis: Analysis) -> Table | None:
    """Every criterion of the study's phase on every arm but the baseline; None of a study that is no phase."""
    names = {str(run.record.study) for run in analysis.study.runs} & PHASES.keys()
    baseline = next((arm for arm in analysis.arms if arm.name == analysis.judgement.baseline), None)
    if len(names) != 1 or baseline is None:
        return None
    (phase,) = names
    rows = []
    for text, check in PHASES[phase].items():
        for arm in analysis.arms:
            if arm is not baseline:
                found = _on(check, arm, baseline)
                rows.append([text, arm.name, WORDS[found.met], found.said])
    columns = ["criterion", "arm", "", "by"]
    caption = f"The criteria of seed 001's {phase}, one by one, on what the runs recorded: no verdicts."
    return Table("criteria", caption, columns, rows, text=("arm", "", "by"), screen=("by",))


def _on(check: Check, arm: Arm, baseline: Arm) -> Checked:
    """A criterion on an arm, not measurable where a file that it reads is damaged."""
    if not arm.runs:
        return Checked(None, "no run has completed")
    try:
        return check(arm, baseline)
    except UsageError as error:
        return Checked(None, str(error))


def switches(arm: Arm, baseline: Arm) -> Checked:
    """Layers switch, and for which reasons their policy says that they did; that a residual has faded is none."""
    rows = [(run.name, row) for run in arm.runs for row in run.rows("switches.jsonl")]
    low = {(name, row["layer"]) for name, row in rows if row["to"] != "full"}
    back = sum(row["to"] == "full" for _, row in rows)
    reasons = ", ".join(sorted({row["reason"] for _, row in rows if row["to"] != "full" and row["from"] != "fading"}))
    if not low:
        return Checked(False, f"no layer switched (runs: {len(arm.runs)})")
    return Checked(True, f"{len(low)} layers, runs: {len(arm.runs)} ({reasons}); {back} returns to full")


def within(share: float) -> Check:
    """The validation loss is at most a share above the baseline's on the same seeds."""

    def check(arm: Arm, baseline: Arm) -> Checked:
        metric = "val_bpb" if arm.values("val_bpb") else "val_loss"
        others = {run.pair: run.value(metric) for run in baseline.runs}
        pairs = [(run.value(metric), others.get(run.pair)) for run in arm.runs]
        ratios = [own / other - 1 for own, other in pairs if own is not None and other]
        mean, _ = mean_sd(ratios)
        if mean is None:
            return Checked(None, f"no seed of it and of {baseline.name} has {metric}")
        own = mean_sd(arm.values(metric))[0]
        said = f"{metric} {number(own)}, {mean:+.2%} of {baseline.name}'s (seeds: {len(ratios)})"
        return Checked(mean <= share, said)

    return check


def coherent(arm: Arm, baseline: Arm) -> Checked:
    """Text is coherent: nobody has measured it."""
    perplexity = mean_sd(arm.values("val_perplexity"))[0]
    return Checked(None, f"no measure of coherence here; perplexity {number(perplexity, 1)}, samples are in train.log")


def attacked(arm: Arm, baseline: Arm) -> Checked:
    """At least one layer was seen under attack at one tick."""
    decisions = [row for run in arm.runs for row in run.rows("decisions.jsonl")]
    if not any(row["clauses"] for row in decisions):
        return Checked(None, "its policy tests no attack")
    holding = ({item["name"] for item in row["clauses"] if item["holds"]} for row in decisions)
    tested = {item["name"] for row in decisions for item in row["clauses"]}
    if not any(set(names) <= tested for names in ATTACKS):
        return Checked(None, "its policy tests no attack")
    count = sum(any(set(names) <= holds for names in ATTACKS) for holds in holding)
    return Checked(count > 0, f"{count:,} of {len(decisions):,} decisions saw one")


def falls(arm: Arm, baseline: Arm) -> Checked:
    """A layer's rank is lower than its last one."""
    fallen = rose = 0
    for run in arm.runs:
        ranks: dict[str, int] = {}
        for row in run.rows("switches.jsonl"):
            before, now = ranks.get(row["layer"]), row["rank"]
            if now is not None:
                fallen += before is not None and now < before
                rose += before is not None and now > before
                ranks[row["layer"]] = now
    return Checked(fallen > 0, f"{fallen} times lower than the layer's last rank, {rose} times higher")


def analysed(arm: Arm, baseline: Arm) -> Checked:
    """An analysis was written."""
    return Checked(True, "this report")


def core(arm: Arm, baseline: Arm) -> Checked:
    """CORE, NanoChat's mean over tasks, is at least the baseline's."""
    return Checked(None, "CORE is not among what the lab measures; lab.evaluate runs its tasks one by one")


def competitive(arm: Arm, baseline: Arm) -> Checked:
    """It takes no longer than the baseline on the same device."""
    devices = {run.record.environment.get("device") for run in (*arm.runs, *baseline.runs)}
    own, other = (mean_sd(each.values("seconds.total"))[0] for each in (arm, baseline))
    if len(devices) != 1 or own is None or other is None:
        return Checked(None, "runs of both on one device are needed")
    return Checked(own <= SLOWER * other, f"{own / other:.2f} times {baseline.name}'s seconds; up to {SLOWER:g} counts")


PHASES: Mapping[str, Mapping[str, Check]] = {
    "phase2": {
        "layers switch, for the reasons of their policy": switches,
        "validation within 5 % of the baseline": within(0.05),
        "coherent text": coherent,
        "at least one clobbering detected": attacked,
        "rank falls somewhere": falls,
        "an analysis is written": analysed,
    },
    "phase3": {
        "validation within 3 % of the baseline": within(0.03),
        "CORE at least the baseline's": core,
        "time competitive": competitive,
        "rank falls": falls,
    },
}
