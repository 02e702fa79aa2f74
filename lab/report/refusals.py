"""Refusals: why two arms must not be compared, or what their pairs do not license."""

from collections.abc import Callable

from lab.report.arms import Arm
from lab.report.run import Run


def refusal(a: Arm, b: Arm) -> str:
    """Why two arms must not be compared: other data, another base or arithmetic, named; empty where they may.

    Looked at pair by pair: a base that a seed drew is the same for both arms of that seed, and may differ between
    seeds. Without a shared seed, the arms must have something in common.
    """
    first, second = {run.pair: run for run in a.runs}, {run.pair: run for run in b.runs}
    shared = [(first[pair], second[pair]) for pair in first if pair in second]
    facts: tuple[tuple[str, Callable[[Run], object]], ...] = (
        ("data", lambda run: run.record.data.get("sha256")),
        ("base models", lambda run: run.base),
        ("precisions that hardware.precision=auto came to", lambda run: run.chosen_precision),
    )
    for what, of in facts:
        apart = [(of(x), of(y)) for x, y in shared if of(x) != of(y)]
        if not shared and a.runs and b.runs and {of(x) for x in a.runs}.isdisjoint(of(y) for y in b.runs):
            apart = [(of(a.runs[0]), of(b.runs[0]))]
        if apart:
            pairs = f" in {len(apart)} of {len(shared)} pairs" if shared else ""
            return f"refused: the {what} differ{pairs} ({a.name}: {apart[0][0]}, {b.name}: {apart[0][1]})"
    return ""


def chosen_here(a: Arm, b: Arm) -> str:
    """Why an arm whose learning rate was chosen on the judged seeds has no verdict; empty where none was.

    The best of several rates is partly the luckiest on those seeds: the best of five against a single one is called
    better in 7.5 % of studies of equal arms instead of 2.5 %, and how many rates really compete depends on the curve.
    """
    names = " and ".join(arm.name for arm in (a, b) if arm.chosen_on == "verdict")
    if not names:
        return ""
    return (
        f"the learning rate of {names} was chosen on the seeds that are judged, which flatters an arm; run the chosen "
        "rate on other seeds, or a study, which tunes on seeds of its own"
    )


def survivorship(verdict: str, a: Arm, b: Arm, metric: str) -> str:
    """Why the pairs that are left do not license a verdict; empty where they do.

    A seed that diverged is worse than any loss, and it is no pair: an arm that lost one is not better, nor as good, by
    those it kept. That it is worse even on those may be said.
    """
    for arm, favoured in ((a, ("a_better", "equivalent")), (b, ("b_better", "equivalent"))):
        if verdict in favoured and (lost := arm.lost(metric)):
            claim = "as good" if verdict == "equivalent" else "better"
            return f"{lost}, so that the seeds that are left cannot show it to be {claim}"
    return ""
