"""Contrasts between arms, paired by seed, and the baseline against itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lab.report import statistics
from lab.report.arms import Arm
from lab.report.document import number, span
from lab.report.equal_time import at_equal_time
from lab.report.judgement import Judgement
from lab.report.looks import Looked, Replay
from lab.report.refusals import chosen_here, refusal, survivorship
from lab.report.run import Run
from lab.report.statistics import LEVEL, PairedStatistics, mean_sd

# What is described beside the primary metric; for all of them but the accuracy, lower is better.
DESCRIBED = ("val_loss", "test_loss", "test_accuracy", "train_loss", "forgetting", "seconds.total", "peak_memory_bytes")
ON_GPU = ("peak_memory_bytes",)  # elsewhere it is a process's, which may have run other jobs before
EQUAL_TIME = "val_loss_at_equal_time"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One contrast of arm a with arm b; differences are a − b over the pairs they share."""

    metric: str
    higher_is_better: bool
    kind: str  # contrast | aa | described
    arm_a: str
    arm_b: str
    statistics: PairedStatistics
    p_adjusted: float | None = None
    p_equivalence_adjusted: float | None = None
    verdict: str = "not_judged"
    reason: str = ""
    lost: tuple[str, ...] = ()  # of either arm: the seeds that diverged, in words
    dropped: tuple[str, ...] = ()  # completed runs without a partner
    differences: tuple[float, ...] = ()  # a − b, a value per pair
    seeds_to_decide: int | None = None
    looked: Looked | None = None  # where seeds were taken one at a time
    budgets: str = ""  # what each arm trained, in words, where that is not the same number of steps

    @property
    def ci_level(self) -> float:
        """The level of the interval: of one look, where all looks together are to keep 95 %."""
        level = self.looked.judged.contrast.ci_level if self.looked else None
        return 1 - LEVEL if level is None else level

    def row(self) -> dict[str, object]:
        """The row of comparisons.json: exactly the fields of design §3."""
        s, own = self.statistics, self.looked
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "kind": self.kind,
            "arm_a": self.arm_a,
            "arm_b": self.arm_b,
            "pairs": s.pairs,
            "looks": None if own is None else own.judged.contrast.looks,
            "horizon": None if own is None else own.horizon,
            "stopped_because": None if own is None else own.judged.stopped_because,
            "mean_difference": s.mean,
            "ci_level": self.ci_level,
            "ci_low": s.ci_low,
            "ci_high": s.ci_high,
            "p_value": s.p_value,
            "p_sequential": None if own is None else own.judged.contrast.p_sequential,
            "p_adjusted": self.p_adjusted,
            "p_equivalence": s.p_equivalence,
            "p_equivalence_sequential": None if own is None else own.judged.contrast.p_equivalence_sequential,
            "equivalence_margin": s.margin,
            "tuning_regret": None if own is None else own.regret,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def compare(
    arms: Sequence[Arm], judgement: Judgement, looked: Replay | None = None, again: Arm | None = None
) -> list[Comparison]:
    """The A/A row, the judged contrasts, then what is only described; empty without a baseline.

    `looked` are the contrasts of a study that took its seeds one at a time, None of any other: a test of a fixed number
    of seeds would not hold for seeds that were looked at. `again` is its A/A arm.
    """
    by_name = {arm.name: arm for arm in arms}
    if judgement.baseline is None:
        return []
    baseline = by_name[judgement.baseline]
    aa = None if again else aa_comparison(baseline, judgement)
    if again and looked and isinstance(own := looked.of(again.name, baseline.name), Looked):
        aa = _by_looks(again, baseline, judgement, own, "aa")
    against = {name: by_name[judgement.opponents.get(name, judgement.baseline)] for name in by_name}
    pairs = [judgement.pair(contrast) for contrast in judgement.contrasts]
    judged = [_contrast(by_name[a], by_name[b], judgement.metric, judgement, judged=True) for a, b in pairs]
    # A contrast that cannot be judged tests nothing, so it costs the others nothing under Holm.
    tested = [c.statistics if c.statistics.pairs >= statistics.FEWEST_PAIRS else None for c in judged]
    different = statistics.holm([s.p_value if s else None for s in tested])
    equivalent = statistics.holm([s.p_equivalence if s else None for s in tested])
    rows = [] if aa is None else [aa]
    for contrast, p_adjusted, p_equivalence in zip(judged, different, equivalent, strict=True):
        if looked is not None:
            a, b = by_name[contrast.arm_a], by_name[contrast.arm_b]
            own = looked.of(a.name, b.name)
            rows.append(_unseen(contrast, own) if isinstance(own, str) else _by_looks(a, b, judgement, own, "contrast"))
            continue
        verdict, reason = statistics.verdict(
            contrast.statistics,
            p_adjusted,
            p_equivalence,
            higher_is_better=judgement.higher_is_better,
            aa_p_value=aa.statistics.p_value if aa else None,
        )
        a, b = by_name[contrast.arm_a], by_name[contrast.arm_b]
        forbidden = refusal(a, b) or chosen_here(a, b) or survivorship(verdict, a, b, judgement.metric)
        wanted = None
        s = contrast.statistics
        if verdict == "inconclusive" and s.mean is not None and s.sd:
            family = sum(p is not None for p in different)
            wanted = statistics.seeds_to_decide(s.mean, s.sd, s.margin, LEVEL / max(1, family))
        rows.append(
            replace(
                contrast,
                p_adjusted=p_adjusted,
                p_equivalence_adjusted=p_equivalence,
                verdict="withheld" if forbidden else verdict,
                reason=forbidden or reason,
                seeds_to_decide=wanted,
            )
        )
    others = [arm for arm in arms if arm is not baseline]
    rows += [
        replace(_contrast(arm, against[arm.name], judgement.metric, judgement), reason="not a declared contrast")
        for arm in others
        if (arm.name, against[arm.name].name) not in pairs
    ]
    on_gpu = all(run.record.environment.get("accelerator") == "gpu" for arm in arms for run in arm.runs)
    for metric in DESCRIBED:
        if metric != judgement.metric and (on_gpu or metric not in ON_GPU):
            described = (_contrast(arm, against[arm.name], metric, judgement) for arm in others)
            rows += [replace(c, reason="not the primary metric") for c in described if c.statistics.pairs]
    rows += [c for arm in others if (c := _at_equal_time(arm, against[arm.name])).statistics.pairs]
    if again is not None:
        by_name[again.name] = again
    return [replace(c, reason=refusal(by_name[c.arm_a], by_name[c.arm_b]) or c.reason) for c in rows]


def _unseen(contrast: Comparison, reason: str) -> Comparison:
    """A contrast that nothing was looked at for: its mean, and no test of a fixed number of seeds."""
    mean = replace(contrast.statistics, ci_low=None, ci_high=None, p_value=None, p_equivalence=None)
    return replace(contrast, statistics=mean, verdict="withheld", reason=reason)


def _by_looks(a: Arm, b: Arm, judgement: Judgement, looked: Looked, kind: str) -> Comparison:
    """A contrast as its looks left it: on the seeds that were looked at, with the repeated interval."""
    own = looked.judged
    first = {run.pair[1]: value for run in a.runs if (value := run.value(judgement.metric)) is not None}
    second = {run.pair[1]: value for run in b.runs if (value := run.value(judgement.metric)) is not None}
    shared = [seed for seed in judgement.seeds[: own.seeds] if seed in first and seed in second]
    result = statistics.paired_t([first[s] for s in shared], [second[s] for s in shared], judgement.margin)
    verdict = {"better": "a_better", "worse": "b_better", "open": "inconclusive"}.get(own.verdict, own.verdict)
    forbidden = refusal(a, b) if kind == "contrast" else ""
    forbidden = forbidden or chosen_here(a, b) or survivorship(verdict, a, b, judgement.metric)
    return Comparison(
        metric=judgement.metric,
        higher_is_better=judgement.higher_is_better,
        kind=kind,
        arm_a=a.name,
        arm_b=b.name,
        statistics=replace(result, ci_low=own.contrast.ci_low, ci_high=own.contrast.ci_high),
        p_adjusted=own.p_adjusted,
        p_equivalence_adjusted=own.q_adjusted,
        verdict="withheld" if forbidden else verdict,
        reason=forbidden or own.reason,
        lost=tuple(filter(None, (a.lost(judgement.metric), b.lost(judgement.metric)))),
        differences=tuple(first[s] - second[s] for s in shared),
        looked=looked,
        budgets=unequal_budgets(a, b),
    )


def unequal_budgets(a: Arm, b: Arm) -> str:
    """Steps, tokens and seconds of two arms in words; empty where both trained as many steps."""
    if {run.record.steps for run in a.runs} == {run.record.steps for run in b.runs}:
        return ""
    said = []
    for arm in (a, b):
        steps, tokens = (span(getattr(run.record, what) for run in arm.runs) for what in ("steps", "tokens"))
        seconds = number(mean_sd(arm.values("seconds.total"))[0], 0)
        said.append(f"{arm.name} trained {steps} steps, {tokens} tokens, in {seconds} s")
    return " and ".join(said)


def _contrast(a: Arm, b: Arm, metric: str, judgement: Judgement, *, judged: bool = False) -> Comparison:
    """Difference of two arms over the seeds both completed; nothing is computed across data or bases."""
    primary = metric == judgement.metric
    first, second, dropped = _pairs(a, b, metric)
    if refusal(a, b):
        first, second = [], []
    margin = judgement.margin if primary else None
    return Comparison(
        metric=metric,
        higher_is_better=judgement.higher_is_better if primary else metric == "test_accuracy",
        kind="contrast" if judged else "described",
        arm_a=a.name,
        arm_b=b.name,
        statistics=statistics.paired_t(first, second, margin),
        lost=tuple(filter(None, (a.lost(metric), b.lost(metric)))),
        budgets=unequal_budgets(a, b),
        dropped=tuple(dropped),
        differences=tuple(x - y for x, y in zip(first, second, strict=True)),
    )


def _pairs(a: Arm, b: Arm, metric: str) -> tuple[list[float], list[float], list[str]]:
    """Values of the runs that share seed and data order, and the names of those without a partner."""
    first = {run.pair: run for run in a.runs if run.value(metric) is not None}
    second = {run.pair: run for run in b.runs if run.value(metric) is not None}
    shared = [pair for pair in first if pair in second]
    dropped = [run.name for pair, run in [*first.items(), *second.items()] if pair not in shared]
    values_a = [value for pair in shared if (value := first[pair].value(metric)) is not None]
    values_b = [value for pair in shared if (value := second[pair].value(metric)) is not None]
    return values_a, values_b, dropped


def aa_couples(baseline: Arm) -> list[tuple[Run, Run]]:
    """Runs of the baseline that share the data order and differ in the seed, two by two.

    Where no twins were declared, runs with one data_seed are paired in the order of their seeds, each used once.
    """
    if baseline.twins:
        first = {run.record.data_seed: run for run in baseline.runs}
        return [(first[t.record.data_seed], t) for t in baseline.twins if t.record.data_seed in first]
    groups: dict[int | None, list[Run]] = {}
    for run in sorted(baseline.runs, key=lambda run: run.record.seed or 0):
        groups.setdefault(run.record.data_seed, []).append(run)
    return [two for group in groups.values() for two in list(pairwise(group))[::2]]


def aa_comparison(baseline: Arm, judgement: Judgement) -> Comparison | None:
    """The A/A row; None without any pair of runs that differ in the seed alone."""
    couples = aa_couples(baseline)
    values = [(run.value(judgement.metric), twin.value(judgement.metric)) for run, twin in couples]
    both = [(x, y) for x, y in values if x is not None and y is not None]
    if not both:
        return None
    result = statistics.paired_t([x for x, _ in both], [y for _, y in both], judgement.margin)
    verdict, reason = statistics.verdict(
        result,
        None,
        result.p_equivalence,
        higher_is_better=judgement.higher_is_better,
        aa_p_value=result.p_value,
    )
    return Comparison(
        metric=judgement.metric,
        higher_is_better=judgement.higher_is_better,
        kind="aa",
        arm_a=baseline.name,
        arm_b=baseline.name,
        statistics=result,
        verdict=verdict,
        reason=reason,
        differences=tuple(x - y for x, y in both),
    )


def _at_equal_time(a: Arm, b: Arm) -> Comparison:
    first, second = at_equal_time(a, b)
    return Comparison(
        metric=EQUAL_TIME,
        higher_is_better=False,
        kind="described",
        arm_a=a.name,
        arm_b=b.name,
        statistics=statistics.paired_t(first, second, None),
        reason="not the primary metric; at the time the faster run of each pair ended",
        differences=tuple(x - y for x, y in zip(first, second, strict=True)),
    )
