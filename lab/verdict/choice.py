"""Choice of a learning rate among rates that were run: a parabola in log rate, beside a cliff that of the flat side.

Positions are log10 of the rate, losses those of the selection metric (lower is better), curvatures loss per decade².
Standard library only.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Outcomes = Mapping[float, Sequence[float | None]]  # rate -> loss per tuning seed, None where it diverged
Rule = Literal["declared", "grid", "vertex", "cliff", "flat", "edge", "none"]
Point = tuple[float, float]  # (position, loss), the loss inf where the run diverged

FINE = 0.25  # decades between the rates of the last step
FLAT = 1.0  # curvature that the noise of a tuning seed draws by itself: a quarter decade off costs 0.03 nats
STEEPER = 1.5  # curvature of the last three over that of the flat side alone, from which one side is a cliff,
CLEARLY = 3  # where it is this many times FLAT: below, noise makes as many cliffs as there are
USUAL_MARGIN = 0.03  # nats per token, for which FLAT and LOST are meant
LOST = 0.1  # loss above the best from which a rate counts as lost to the cliff


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The rate an arm is judged at, how it was chosen, and what the choice may have cost."""

    rate: float | None
    rule: Rule
    reason: str
    curve: dict[float, float | None]  # loss on the first tuning seed; None where it diverged
    curvature: float | None = None
    regret: float | None = None  # ρ̂: loss above the best rate's that nine arms in ten stay within; None: unbounded
    cliff_below: bool = False  # where the rule is a cliff
    largest_kept: float | None = None  # the largest up to which every rate run kept within `lost` of the best

    @property
    def chosen_by(self) -> str:
        """The rule, and the side of a cliff: smaller rates lose too, where a measure asks to come to some loss."""
        return f"cliff {'below' if self.cliff_below else 'above'}" if self.rule == "cliff" else self.rule

    @property
    def cost(self) -> float:
        """What the choice may have cost: 0 where none was searched for, unbounded where it may lie beyond an edge."""
        return 0.0 if self.rule in ("declared", "grid") else math.inf if self.regret is None else self.regret

    @property
    def searched(self) -> bool:
        """True where the rate was searched for and found inside what was tried: a claim may then be of the best one."""
        return self.rule not in ("declared", "grid", "edge", "none")

    @property
    def at_edge(self) -> bool:
        """True where the rate is the smallest or largest of those tried."""
        return self.rule == "edge" or (self.rule == "grid" and self.rate in (min(self.curve), max(self.curve)))

    @property
    def to_cliff(self) -> float | None:
        """Decades from the chosen rate up to the largest that did not lose; negative where it lies beyond."""
        if self.rate is None or self.largest_kept is None:
            return None
        return math.log10(self.largest_kept / self.rate)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What counts as much in the units of the loss, and what a rate without one is said to have done.

    The defaults suit nats per token at a margin of about 0.03.
    """

    flat: float = FLAT
    lost: float = LOST
    tolerance: float = math.inf  # regret beyond which a second refinement is worth its two jobs
    missing: str = "diverged"

    @classmethod
    def of(cls, margin: float | None, missing: str = "diverged") -> "Scale":
        """In proportion to a margin below the usual, of a study whose losses differ by less; else the defaults.

        Without a margin there is one refinement.
        """
        if margin is None:
            return cls(missing=missing)
        share = min(1.0, margin / USUAL_MARGIN)
        return cls(flat=FLAT * share, lost=LOST * share, tolerance=margin, missing=missing)


def best_rate(rates: Sequence[float], outcomes: Outcomes) -> float | None:
    """The rate with the lowest loss on the first tuning seed, the smaller of equals; None where none has one."""
    ranked = sorted((loss_of(outcomes[rate]), rate) for rate in rates if outcomes.get(rate))
    return ranked[0][1] if ranked and math.isfinite(ranked[0][0]) else None


def vertex(points: Sequence[Point]) -> Point | None:
    """(position of the lowest point, curvature) of the parabola through three points; None unless it opens upwards."""
    (x0, y0), (x1, y1), (x2, y2) = points
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = 2 * (right - left) / (x2 - x0)
    if not (math.isfinite(curvature) and curvature > 0):
        return None
    return (x0 + x1) / 2 - left / curvature, curvature


def choose(known: Sequence[float], outcomes: Outcomes, seeds: int, spacing: float, scale: Scale) -> Tuned:
    """The choice among known rates, whose best on the first seed and its neighbours were run on all `seeds`.

    Beside a cliff, the vertex of the parabola through the last three lies too far out on the flat side. That one side
    is a cliff shows where it diverged, or where the three curve STEEPER times as strongly as the flat side alone: for a
    parabola both are the same, while the ratio of its two rises exceeds 3 wherever the three stand a little off its
    vertex. Then the flat side's own parabola is followed, at most half way to the next rate, never towards the cliff.
    """
    chosen = functools.partial(
        Tuned, curve=curve_of(known, outcomes), largest_kept=_largest_kept(curve_of(known, outcomes), scale.lost)
    )
    last = last_three(known, outcomes)
    if last is None:
        reason = "the best learning rate is still at the edge of those tried"
        return chosen(rate=best_rate(known, outcomes), rule="edge", reason=reason)
    points = [(math.log10(rate), loss_of(outcomes[rate], seeds)) for rate in last]
    lowest = min(zip(points, last, strict=True), key=lambda each: each[0][1])
    if math.isinf(lowest[0][1]):
        return chosen(rate=None, rule="none", reason=f"its best rates {scale.missing} on another tuning seed")
    if math.isinf(points[1][1]):
        reason = f"the best rate of one tuning seed {scale.missing} on another"
        return chosen(rate=lowest[1], rule="edge", reason=reason)
    side = _flat_side(known, outcomes, last, points)
    whole, flank = vertex(points), vertex(side) if len(side) == 3 else None
    middle, half = points[1][0], spacing / 2
    # What noise costs where the curve itself would cost less: more, the closer the rates.
    least = (1.5 if spacing == FINE else 2.0) * scale.flat * (FINE / 2) ** 2 / 2
    flat = scale.flat * (FINE / spacing) ** 2  # the same noise on rates closer together draws stronger curvatures
    steep = whole is not None and whole[1] >= CLEARLY * flat and len(side) == 3
    lost = [position for position, loss in points if math.isinf(loss)]
    if lost or (steep and whole is not None and (flank is None or whole[1] > STEEPER * flank[1])):
        toward, rise = side[-2] if side[0][0] < middle else side[1]
        # Without a parabola on that side, the one that has its vertex in the middle.
        curvature = 2 * max(0.0, rise - points[1][1]) / (toward - middle) ** 2 if flank is None else flank[1]
        step = 0.0
        if flank is not None and flank[1] >= flat / 2:
            step = min(max((flank[0] - middle) / (toward - middle), 0.0), 0.5)
        return chosen(
            rate=rounded(middle + step * (toward - middle)),
            rule="cliff",
            reason=f"a cliff on the {'higher' if toward < middle else 'lower'} side: the other side's parabola",
            cliff_below=toward > middle,
            curvature=curvature,
            regret=max(least, curvature * half**2 / 2, *(_hidden(side, flank, middle, each) for each in lost)),
        )
    if whole is None or whole[1] < flat:
        reason = "flat: the best of the last three"
        return chosen(rate=lowest[1], rule="flat", reason=reason, curvature=whole[1] if whole else None, regret=least)
    position = min(max(whole[0], points[0][0]), points[2][0])
    # How far the flat side's parabola disagrees tells how far the vertex can be trusted.
    apart = half if flank is None else min(max(2 * abs(flank[0] - position), half / 3), half)
    return chosen(
        rate=rounded(position),
        rule="vertex",
        reason="the vertex of the parabola through the last three",
        curvature=whole[1],
        regret=max(least, whole[1] * apart**2 / 2),
    )


def _flat_side(
    known: Sequence[float], outcomes: Outcomes, last: Sequence[float], points: Sequence[Point]
) -> list[Point]:
    """The last three's middle, its neighbour on the side that rises less, and the next known rate there, if any.

    That one was run on the first tuning seed alone: it is moved by what this seed differs from the mean of all.
    """
    (low, low_loss), (middle, loss), (high, high_loss) = points
    downward = (low_loss - loss) / (middle - low) <= (high_loss - loss) / (high - middle)
    rates = sorted(rate for rate in known if outcomes.get(rate))
    i = rates.index(last[1])
    beyond = rates[i - 2 : i - 1] if downward and i >= 2 else [] if downward else rates[i + 2 : i + 3]
    shared = [(mean, loss_of(outcomes[r])) for r, (_, mean) in zip(last, points, strict=True) if math.isfinite(mean)]
    shift = math.fsum(mean - first for mean, first in shared) / len(shared)
    losses = [(math.log10(rate), loss_of(outcomes[rate]) + shift) for rate in beyond]
    far = [(position, each) for position, each in losses if math.isfinite(each)]
    return sorted([*far, *(points[:2] if downward else points[1:])])


def _hidden(side: Sequence[Point], flank: Point | None, middle: float, lost: float) -> float:
    """Loss by which the flat side goes on falling from the middle to a rate that was lost: what may lie between them.

    By that side's parabola, or by its slope where there is none.
    """
    if flank is not None:
        position, curvature = flank
        lowest = min(max(position, min(middle, lost)), max(middle, lost))
        return curvature * (lowest - middle) * (position - (middle + lowest) / 2)  # exact where it is nearly a line
    (left, left_loss), (right, right_loss) = side[-2:] if lost > middle else side[:2]
    return max(0.0, (right_loss - left_loss) / (right - left) * (middle - lost))


def _largest_kept(curve: Mapping[float, float | None], lost: float) -> float | None:
    """The largest rate up to which, from the best on, every rate run stayed within `lost` of it."""
    losses = {rate: loss for rate, loss in curve.items() if loss is not None}
    if not losses:
        return None
    kept = min(losses, key=lambda rate: losses[rate])
    least = losses[kept]
    for rate in (rate for rate in sorted(curve) if rate > kept):
        if losses.get(rate, math.inf) > least + lost:
            break
        kept = rate
    return kept


def last_three(known: Sequence[float], outcomes: Outcomes) -> list[float] | None:
    """The best rate between its neighbours; None where it has one on one side alone."""
    rates = sorted(rate for rate in known if outcomes.get(rate))
    best = best_rate(known, outcomes)
    assert best is not None
    i = rates.index(best)
    return rates[i - 1 : i + 2] if 0 < i < len(rates) - 1 else None


def curve_of(rates: Sequence[float], outcomes: Outcomes) -> dict[float, float | None]:
    """The losses of rates on the first tuning seed; None where it diverged."""
    losses = {rate: loss_of(outcomes[rate]) for rate in sorted(set(rates)) if outcomes.get(rate)}
    return {rate: loss if math.isfinite(loss) else None for rate, loss in losses.items()}


def loss_of(values: Sequence[float | None], seeds: int = 1) -> float:
    """Mean loss of the first `seeds` tuning seeds; inf where one of them diverged."""
    own = [math.inf if v is None or not math.isfinite(v) else v for v in values[:seeds]]
    return math.fsum(own) / len(own)


def rounded(position: float) -> float:
    """The rate at a position to three digits, so that it is the same key wherever it is written."""
    return float(f"{10**position:.3g}")
