"""Procedure of a study: rates, margin and looks, from what its runs came to. Its planner and its report both ask here.

Source: `docs/statistics.md`, where its error rates are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab.record.study import AA, Study, pairs_of, role_of, tune_seeds_of, verdict_seeds_of
from lab.verdict import choice, family, margin, tuning
from lab.verdict.choice import Scale, Tuned
from lab.verdict.family import Judged, Rules
from lab.verdict.null_table import FIRST_LOOK
from lab.verdict.tuning import MOST_EXTENSIONS

Losses = list[float | None]  # of a rate, per tuning seed: None where it diverged, and empty where a run failed
Ran = Callable[[str, float, Sequence[int]], Losses | None]  # arm, rate, tuning seeds; None while a run is missing
Ends = Callable[[str, float, Sequence[int]], list[tuple[float | None, float | None]] | None]  # stage, rate, seeds
Ended = Callable[[str, float, int], tuple[bool, float | None]]  # arm, rate, seed -> has it ended, and the metric


@dataclass(frozen=True, kw_only=True)
class TunedByAnother(Tuned):
    """A rate that was best by a metric of another unit than is judged: what it costs of that one nobody measured."""

    @property
    def cost(self) -> float:
        """Nothing that could be held against a difference: a verdict is at the rates tried."""
        return 0.0

    @property
    def searched(self) -> bool:
        """False: the best rate of what is judged may be another."""
        return False


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The learning rates chosen so far, and the margin, in units of the metric, as soon as it is known."""

    tuned: dict[str, Tuned]
    margin: float | None


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Every contrast as the looks left it, by its name, and the verdict seeds every arm needs for the next look."""

    judged: dict[str, Judged]
    wanted: dict[str, int]


def choose(study: Study, ran: Ran, ends: Ends) -> Chosen:
    """The learning rates, arm by arm, the baseline's first: its refinement gives the margin, and that the scale of all.

    `ends` are (loss of the base, loss) of the baseline's runs, or None. Both callables may note what is to be run.
    """

    def search(arm: str, around: float | None, scale: Scale) -> Tuned | None:
        return tuning.search(
            study.learning_rates[arm],
            lambda rate, count: ran(arm, rate, tune_seeds_of(study, arm)[:count]),
            around=around,
            seeds=len(study.tune_seeds),
            scale=scale,
            most_extensions=extensions_per_arm(study),
            refine=study.refine,
        )

    alike = margin.alike(study.metric, study.selection_metric)

    def scale(value: float | None) -> Scale:
        return Scale.of(value if alike else None, missing=margin.missing(study.selection_metric))

    own, tuned = study.baseline, dict[str, Tuned]()
    value, first = study.margin_value, search(own, None, scale(study.margin_value))
    if first is not None and value is None:
        value = _margin(study, first, ends)
        first = search(own, None, scale(value))
    if first is not None:
        tuned[own] = first
    for arm in (arm for arm in study.arms if arm != own):
        around = None
        if follows(study, arm):
            if first is None:
                continue
            around = choice.best_rate(study.learning_rates[own], {rate: [loss] for rate, loss in first.curve.items()})
        found = search(arm, around, scale(value))
        if found is not None and first is not None:
            tuned[arm] = found
    if not alike:
        tuned = {arm: TunedByAnother(**vars(each) | {"regret": None}) for arm, each in tuned.items()}
    return Chosen(tuned=tuned, margin=value)


def follows(study: Study, arm: str) -> bool:
    """True for an arm whose search starts around the baseline's best rate."""
    grids = study.learning_rates
    alike = arm != study.baseline and sorted(grids[arm]) == sorted(grids[study.baseline])
    return study.refine and alike and len(grids[arm]) > 3


def look(study: Study, chosen: Chosen, ended: Ended) -> Looks:
    """The contrasts judged on the runs that have ended, once every arm has its rate.

    The A/A arm is a family of its own. An arm without a rate is not judged, and costs the others nothing.
    """
    ready = {arm: own for arm, own in chosen.tuned.items() if own.rate is not None}
    wanted = {arm: first_seeds(study, arm) for arm in ready}
    judged: dict[str, Judged] = {}
    if study.horizon is not None:
        rules = Rules(horizon=study.horizon, budget=study.budget or study.horizon, give_up=study.give_up)
        pairs = {name: pair for name, pair in pairs_of(study).items() if ready.keys() >= set(pair)}
        for names in (study.contrasts, [AA]):
            family_of = {name: pairs[name] for name in names if name in pairs}
            each = family.judge(
                {name: differences(study, chosen, pair, ended) for name, pair in family_of.items()},
                chosen.margin,
                higher_is_better=study.higher_is_better,
                rules=rules,
                regrets={name: (ready[a].cost, ready[b].cost) for name, (a, b) in family_of.items()},
            )
            judged |= each.judged
            for name, seeds in each.wanted.items():
                wanted |= {arm: max(wanted[arm], seeds) for arm in pairs[name]}
    return Looks(judged=judged, wanted=wanted)


def differences(study: Study, chosen: Chosen, pair: tuple[str, str], ended: Ended) -> list[float | None]:
    """Arm − other, seed by seed up to the first that has not ended for both; None for a pair that is lost."""
    (arm, rate), (other, other_rate) = ((name, chosen.tuned[name].rate) for name in pair)
    assert rate is not None
    assert other_rate is not None
    found: list[float | None] = []
    for own, others in zip(verdict_seeds_of(study, arm), verdict_seeds_of(study, other), strict=True):
        (done, a), (other_done, b) = ended(arm, rate, own[0]), ended(other, other_rate, others[0])
        if not (done and other_done):
            break
        found.append(None if a is None or b is None else a - b)
    return found


def fewest_jobs(study: Study) -> int:
    """Tuning as long as no best rate lies at an edge, and verdicts that end at the first look."""
    return tuning_jobs(study) + sum(first_seeds(study, arm) for arm in study.arms)


def most_jobs(study: Study) -> int:
    """The same with verdicts up to the budget; what learning rates take beyond the first refinement comes on top."""
    judged = [arm for arm in study.arms if role_of(study, arm) != "described"]
    more = (study.budget or 0) - FIRST_LOOK if study.horizon is not None else 0
    return fewest_jobs(study) + len(judged) * more


def tuning_jobs(study: Study) -> int:
    """The baseline's grid, three rates of every arm that shares it, and a refinement of each."""
    total = 0
    for arm, grid in study.learning_rates.items():
        if len(grid) > 1:
            around = sorted(grid)[len(grid) // 2] if follows(study, arm) else None
            refined = len(tuning.first_rates(grid, around)) + 2 + 3 * (len(study.tune_seeds) - 1)
            total += refined if study.refine else len(grid) * len(study.tune_seeds)
    return total


def first_seeds(study: Study, arm: str) -> int:
    """Verdict seeds of an arm that are run without a look."""
    most = len(study.seeds) if study.horizon is None else min(FIRST_LOOK, len(study.seeds))
    return min(most, study.described_seeds or most) if role_of(study, arm) == "described" else most


def extensions_per_arm(study: Study) -> int:
    """Half-decades by which an arm's grid may grow: an equal share of the jobs left, whatever the other arms do."""
    if not study.refine:
        return 0
    tuned = sum(len(grid) > 1 for grid in study.learning_rates.values())
    return max(0, min(MOST_EXTENSIONS, (study.max_jobs - fewest_jobs(study)) // max(1, tuned)))


def _margin(study: Study, tuned: Tuned, ends: Ends) -> float | None:
    """The margin by the baseline's run of the tuning seed; where nothing was tuned, by its first verdict seeds."""
    if tuned.rate is None:
        return None
    stage, near, seeds = "verdict", tuned.rate, study.seeds[: first_seeds(study, study.baseline)]
    if tuned.curve:
        near = min(tuned.curve, key=lambda each: abs(math.log(each / (tuned.rate or 1.0))))
        stage, seeds = "tune", study.tune_seeds[:1]
    known = ends(stage, near, seeds)
    return None if known is None else margin.value(study.margin, known)
