"""Declaration of a study: its YAML block, resized and narrowed by the command line, before the first job."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lab.errors import UsageError
from lab.record.study import AA, MOST_CONTRASTS, RATE, TWIN_OFFSET, Study, pair_of, pairs_of
from lab.sweep import metrics
from lab.sweep.block import check_known, read
from lab.verdict import aim, margin
from lab.verdict.family import Rules
from lab.verdict.null_table import FIRST_LOOK

SEED = "seed"
GIVEN = {  # what a study gives each of its jobs, and what to use in its place
    SEED: "declare the seeds of verdicts as seeds and those of tuning as tune_seeds",
    "data_seed": "a job's data order follows its seed; give seed=1,2,3, and the seeds of tuning as tune_seeds",
    "stage": "a study tunes and judges by itself; leave it out, or run a single job without the experiment",
    "arm": "a study runs all its arms; narrow them by a key in which they differ",
    "study": "it is the study's own name; give hydra.sweeper.study.name",
    "resume": "it goes on with a single run; give resume_study=DIR",
}


def declare(block: Mapping[str, Any], size: str = "default", given: Mapping[str, Sequence[str]] | None = None) -> Study:
    """The study a YAML block declares, resized and narrowed.

    `block` holds Study's fields (`learning_rates` may be one list for all arms, an arm one override) and
    `sizes: {quick: {…}, full: {…}}`, whose keys replace the block's; `arms` there may be a list of names to keep. With
    four seeds or more there are looks, up to `budget` of a `horizon`, and the A/A arm unless `aa: false`.
    `given` maps a key of the command line to its values: those of an axis (a key some arm sets, `seed`,
    the study's `rate`) replace it; any other key with a single value holds for every job.
    Raises UsageError for a declaration that contradicts itself, and for a list over something that is no axis.
    """
    plain = read(block, size)
    arms, grid = plain["arms"], plain["learning_rates"]
    declared, known = list(arms), dict.fromkeys([*block["arms"], *arms])
    rate = plain.get("rate", RATE)
    common, seeds = list(plain.get("common", [])), plain["seeds"]
    for override in (*common, *(each for own in arms.values() for each in own)):
        _check_free(override, {**GIVEN, rate: "declare it as learning_rates"})
    for written, values in (given or {}).items():
        key = written.lstrip("+")
        if key == SEED:
            seeds = [_whole(value) for value in values]
        elif key == rate:
            grid = {name: [_rate(rate, value) for value in values] for name in grid}
        elif key in axes(arms):
            arms, grid = _narrow(arms, grid, written, values)
        elif len(values) == 1:
            common.append(f"{written}={values[0]}")
            _check_free(common[-1], GIVEN)
        else:
            raise UsageError(
                f"{key}={','.join(values)} is a list over no axis of {plain['name']}; "
                f"its axes are {', '.join([*axes(arms), SEED, rate])}."
            )
    check_known("baseline", [plain["baseline"]], dict.fromkeys([*declared, *arms]))
    baseline = plain["baseline"] if plain["baseline"] in arms else next(iter(arms))  # the command line left it out
    looks = len(seeds) >= FIRST_LOOK
    rules = Rules(
        horizon=plain.get("horizon", Rules.horizon),
        budget=plain.get("budget", Rules.budget),
    )
    again = looks and plain.pop("aa", True)
    plain.pop("aa", None)
    contrasts = _contrasts(plain, known, arms, baseline)
    if again and AA not in arms and baseline in arms:
        arms, grid = arms | {AA: arms[baseline]}, grid | {AA: grid[baseline]}
    study = Study(
        **plain
        | {
            "size": size,
            "arms": arms,
            "learning_rates": grid,
            "common": common,
            "baseline": baseline,
            "contrasts": contrasts,
            "higher_is_better": metrics.direction(
                plain["name"], plain.get("metric", Study.metric), plain.get("higher_is_better")
            ),
            "aims": aim.kept(plain.get("aims", []), list(dict.fromkeys([*known, *arms])), arms),
            "seeds": seeds,
            "twin_seeds": [seed + TWIN_OFFSET for seed in seeds] if again else [],
            "tune_seeds": plain.get("tune_seeds", [0]),
            "procedure": 2,
            "horizon": rules.horizon if looks else None,
            "budget": min(rules.budget, len(seeds)) if looks else None,
        }
    )
    _check(study, declared)
    if baseline == plain["baseline"]:  # the command line may have left it out, and with it a contrast
        _check_aims(study)
    return study


def with_budget(study: Study, budget: int | None) -> Study:
    """The study with another number of seeds after which a contrast is inconclusive; None leaves its own.

    Looks are calibrated up to the horizon, so that this changes no error rate. Raises UsageError beyond it, and where
    there are no looks.
    """
    if budget is None or budget == study.budget:
        return study
    if study.horizon is None:
        raise UsageError(f"study_budget={budget}: {study.name} has {len(study.seeds)} seeds, too few to look at.")
    Rules(horizon=study.horizon, budget=budget)
    if budget > len(study.seeds):
        raise UsageError(f"study_budget={budget} is more than the {len(study.seeds)} seeds that {study.name} declares.")
    return replace(study, budget=budget)


def axes(arms: Mapping[str, Sequence[str]]) -> list[str]:
    """The config keys in which the arms of a study differ, in the order they appear."""
    return list(dict.fromkeys(_key(override) for own in arms.values() for override in own))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _narrow(
    arms: Mapping[str, list[str]], grid: Mapping[str, list[float]], written: str, values: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """The arms whose override of a key, as it is `written`, has one of the values, and a new arm for each none had."""
    kept: dict[str, list[str]] = {}
    key = written.lstrip("+")
    for value in values:
        same = {name: own for name, own in arms.items() if f"{key}={value}" in [item.lstrip("+~") for item in own]}
        kept |= same or {f"{key}={value}": [f"{written}={value}"]}
    anything = next(iter(grid.values()))  # a new arm starts from the grid of the study's first one
    return kept, {name: list(grid.get(name, anything)) for name in kept}


def _contrasts(
    plain: Mapping[str, Any], known: Mapping[str, None], arms: Mapping[str, list[str]], baseline: str
) -> list[str]:
    """The declared contrasts that are left, new arms where there is room; all others if none is left.

    Raises UsageError for one of an arm that never was.
    """
    others = [name for name in arms if name != baseline]
    every = dict.fromkeys([*known, *arms])
    pairs = {each: pair_of(each, every, baseline) for each in plain.get("contrasts", others)}
    for each, pair in pairs.items():
        meant = each.split("/") if pair[0] == each and each not in every else pair
        check_known(f"contrasts: {each!r} is judged but no arm of {plain['name']}", meant, every)
    declared = [each for each, pair in pairs.items() if all(name in arms for name in pair)]
    if baseline != plain["baseline"] or not declared:
        return others[:MOST_CONTRASTS]
    room = max(0, MOST_CONTRASTS - len(declared))
    return declared + [name for name in others if name not in known and name not in declared][:room]


def _check(study: Study, block_arms: Sequence[str]) -> None:
    """Raises UsageError for what would make the study's verdicts meaningless."""
    pairs = pairs_of(study).values()
    if any(one == other for one, other in pairs) or len(study.contrasts) > MOST_CONTRASTS:
        raise UsageError(
            f"{study.name} declares {len(study.contrasts)} contrasts with {study.baseline!r}; "
            f"at most {MOST_CONTRASTS}, none of them of an arm with itself, can be judged."
        )
    if len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise UsageError(f"contrasts {', '.join(study.contrasts)} of {study.name} name a pair twice; keep one.")
    for name in study.arms:
        if name.startswith("/") or ".." in name.split("/") or "${" in name:
            raise UsageError(
                f"the arm {name!r} of {study.name} has a name that leads elsewhere (/…, .. or ${{…}}); name it plainly "
                "in the study's arms."
            )
    if AA in block_arms:
        raise UsageError(f"the arm {AA!r} of {study.name} has the name of the A/A arm; give it another.")
    metrics.check_selection(study)
    unit = margin.parse(study.margin)[1]
    judged, chosen = margin.units(study.metric), margin.units(study.selection_metric)
    if unit != "metric" and not margin.alike(study.metric, study.selection_metric):
        raise UsageError(
            f"margin={study.margin!r} of {study.name} is a share of {study.selection_metric} ({chosen or 'a number'}), "
            f"and {study.metric} is judged ({judged or 'a number'}); give a selection_metric of the same unit, or the "
            "margin as a number."
        )
    if study.described_seeds is not None and study.described_seeds < 1:
        raise UsageError(f"described_seeds={study.described_seeds} of {study.name} is no number of seeds from 1.")
    twice = [seed + TWIN_OFFSET for seed in study.tune_seeds] if study.twin_seeds else []
    every = [*study.seeds, *study.twin_seeds, *study.tune_seeds, *twice]
    tuned = any(len(grid) > 1 for grid in study.learning_rates.values())
    if len(set(every)) < len(every) or not study.seeds or (tuned and not study.tune_seeds) or min(every) < 0:
        raise UsageError(
            f"seeds {study.seeds} and tuning seeds {study.tune_seeds} must be distinct and some, from 0 on"
            f"{f'; those of the A/A arm are {TWIN_OFFSET} more.' if study.twin_seeds else '.'}"
        )
    for name, grid in study.learning_rates.items():
        if not grid or len(set(grid)) < len(grid) or not all(rate > 0 and math.isfinite(rate) for rate in grid):
            raise UsageError(f"learning rates {grid} of {name} must be positive, distinct and some.")


def _check_free(override: str, taken: Mapping[str, str]) -> None:
    """Raise UsageError for an override that a job's own, which stands behind it, would replace."""
    key = _key(override)
    if key in taken:
        raise UsageError(f"{override} would be replaced in every job of a study: {taken[key]}.")


def _check_aims(study: Study) -> None:
    """Raises UsageError for an aim that no row of the report could check: every arm is compared with the baseline."""
    compared = {frozenset(pair) for pair in pairs_of(study).values()}
    for own in map(aim.parse, study.aims):
        if own.arm is None or own.other is None or study.baseline in (own.arm, own.other):
            continue
        if frozenset((own.arm, own.other)) not in compared:
            raise UsageError(
                f"aims: {own.words!r} of {study.name} is of two arms that are in no contrast, and neither is the "
                f"baseline; add '{own.arm}/{own.other}' to the contrasts."
            )


def _whole(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"seed={value} is no whole number.") from None


def _rate(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{key}={value} is no number.") from None
