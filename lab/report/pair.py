"""Comparison of two studies: every arm they share, the second against the first, paired by seed."""

from dataclasses import replace

from lab.errors import UsageError
from lab.record.study import AA, MOST_CONTRASTS
from lab.report.analysis import Analysis
from lab.report.arms import Arm, arms
from lab.report.comparison import compare
from lab.report.judgement import judgement_of
from lab.report.looks import Replay
from lab.report.study import LoadedStudy


def analyse_pair(
    first: LoadedStudy, second: LoadedStudy, *, baseline: str | None = None, margin: str | None = None
) -> Analysis:
    """The analysis of two studies: an arm of the second is judged against the arm of that name in the first.

    Without a shared name, every arm of the second is judged against the first one's baseline. At most four are
    judged. Raises UsageError where there is nothing to compare.
    """
    own, other = _arms(first), _arms(second)
    names = _names(first, second)
    judgement = judgement_of(first.declared, own, baseline=baseline, margin=margin)
    shared = [arm.name for arm in own if arm.name in {each.name for each in other}]
    opponents = {f"{names[1]}: {name}": f"{names[0]}: {name}" for name in shared}
    if not shared:
        if judgement.baseline is None:
            raise UsageError(
                f"{first.path} and {second.path} share no arm, and the first has no baseline; name one with --baseline."
            )
        opponents = {f"{names[1]}: {arm.name}": f"{names[0]}: {judgement.baseline}" for arm in other}
    reference = judgement.baseline or shared[0]
    judged = list(opponents)[:MOST_CONTRASTS]
    notes = [
        f"{names[0]} is {first.path.name} and {names[1]} is {second.path.name}; "
        "this comparison was not declared before the runs"
    ]
    if len(opponents) > len(judged):
        notes.append(f"only the first {MOST_CONTRASTS} of {len(opponents)} shared arms are judged")
    joined = replace(
        judgement,
        baseline=f"{names[0]}: {reference}",
        contrasts=tuple(judged),
        opponents=opponents,
        declared=False,
        notes=tuple(notes),
    )
    both = [
        replace(arm, name=f"{name}: {arm.name}") for name, each in zip(names, (own, other), strict=True) for arm in each
    ]
    # Of seeds that were taken one at a time for contrasts inside a study.
    looked = Replay() if any(each.declared and each.declared.horizon for each in (first, second)) else None
    study = LoadedStudy(
        path=first.path,
        declared=None,
        runs=first.runs + second.runs,
        problems=first.problems + second.problems,
        title=f"{names[0]} and {names[1]}",
    )
    return Analysis(
        study=study,
        arms=tuple(both),
        judgement=joined,
        comparisons=tuple(compare(both, joined, looked)),
        ranks=None,
    )


def _arms(study: LoadedStudy) -> list[Arm]:
    """The arms of a study without its A/A arm, which is its baseline once more."""
    declared = study.declared
    return [arm for arm in arms(study) if not (declared and declared.twin_seeds and arm.name == AA)]


def _names(first: LoadedStudy, second: LoadedStudy) -> tuple[str, str]:
    """The studies' names; where both have the same one, their directories', and at last A and B."""
    for one, two in ((first.name, second.name), (first.path.name, second.path.name)):
        if one != two:
            return one, two
    return "A", "B"
