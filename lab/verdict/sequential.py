"""Calibrated running-minimum p values: one contrast, looked at after every seed, stopped whenever anyone likes.

Seeds lie on the last axis of every array; a seed whose pair is lost (a run diverged or failed) is nan and moves none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lab.verdict import null_table
from lab.verdict.null_table import FIRST_LOOK

LEVEL = 0.05
ROUNDING = 64 * np.finfo(float).eps  # spread that equal differences of metrics of order one show by rounding alone


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Pairs so far, their mean and standard deviation after each seed, (…, seeds); nan where undefined."""

    pairs: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """State of one contrast after its latest look; what cannot be computed is None, and `fault` says why."""

    pairs: int
    looks: int
    mean: float | None = None
    sd: float | None = None
    p_sequential: float = 1.0  # P*
    p_equivalence_sequential: float = 1.0  # Q*
    ci_level: float | None = None  # of the repeated interval: of one look, so that all looks together keep 95 %
    ci_low: float | None = None
    ci_high: float | None = None
    fault: str | None = None


def moments(differences: np.ndarray) -> Moments:
    """Pairs, mean and standard deviation after each seed, of differences (…, seeds)."""
    d = np.asarray(differences, dtype=float)
    kept = np.isfinite(d)
    pairs = kept.cumsum(axis=-1)
    # Measured from the first pair, so that differences that are all the same have a spread of exactly zero.
    first = np.take_along_axis(d, kept.argmax(axis=-1)[..., None], axis=-1) if d.shape[-1] else d
    shifted = np.where(kept, d - first, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(pairs > 0, shifted.cumsum(axis=-1) / pairs, np.nan)
        squares = (shifted**2).cumsum(axis=-1) - pairs * mean**2
        sd = np.sqrt(np.where(pairs > 1, np.maximum(squares, 0.0) / (pairs - 1), np.nan))
    mean = mean + first
    flat = sd <= ROUNDING * np.maximum(1.0, np.abs(mean))
    return Moments(pairs=pairs, mean=mean, sd=np.where(flat, 0.0, sd))


def paired_p(differences: np.ndarray | Moments, beyond: np.ndarray | float = 0.0) -> np.ndarray:
    """Two-sided p of the paired t after each seed, (…, seeds); 1 before the fourth pair and without any spread.

    `beyond` makes the null hypothesis |mean| ≤ beyond; it may differ by the sign of the mean.
    Source: Student 1908.
    """
    m = differences if isinstance(differences, Moments) else moments(differences)
    return _upper(m, np.abs(m.mean) - beyond, sides=2)


def tost_p(differences: np.ndarray | Moments, margin: np.ndarray | float | None) -> np.ndarray:
    """The larger p of the two one-sided tests that the mean lies inside ±margin, after each seed; 1 without a margin.

    Source: Schuirmann 1987.
    """
    m = differences if isinstance(differences, Moments) else moments(differences)
    return np.ones_like(m.mean) if margin is None else _upper(m, margin - np.abs(m.mean), sides=1)


def running(p: np.ndarray, pairs: np.ndarray, *, sides: int, horizon: int) -> np.ndarray:
    """P* (two sides) or Q* (one side) after each seed: the chance of so small a p at any look up to the horizon.

    A p value at every stopping time, whatever stops the study. Looks beyond the horizon are not taken.
    """
    taken = np.where((pairs >= FIRST_LOOK) & (pairs <= horizon), p, 1.0)
    return null_table.load(sides, horizon).chance(np.minimum.accumulate(taken, axis=-1))


def contrast(differences: Sequence[float | None], margin: float | None, horizon: int) -> Contrast:
    """State of the contrast on these differences, in the order of their seeds; None is a seed without a pair.

    The interval is the repeated one, which covers at every look together in 95 % of studies.
    """
    given = np.array([np.nan if d is None else d for d in differences], dtype=float)
    pairs = sum(d is not None for d in differences)
    if any(d is not None and not np.isfinite(d) for d in differences):
        return Contrast(pairs=pairs, looks=0, fault="a value is not finite")
    if pairs == 0:
        return Contrast(pairs=0, looks=0, fault="no seed was completed by both arms")
    # Beyond the horizon nothing is looked at, so neither are its pairs.
    given = given[np.isfinite(given)][:horizon]
    pairs = len(given)
    m = moments(given)
    mean, looks = float(m.mean[-1]), max(0, pairs - FIRST_LOOK + 1)
    sd = float(m.sd[-1]) if pairs > 1 else None
    if sd == 0:
        fault = "every pair differs by exactly the same amount (zero variance): did the seed reach the runs?"
        return Contrast(pairs=pairs, looks=looks, mean=mean, sd=sd, fault=fault)
    if sd is None or pairs < FIRST_LOOK:
        fault = (
            f"{pairs} pair{'s' * (pairs > 1)} are fewer than {FIRST_LOOK}" if pairs > 1 else "one pair has no spread"
        )
        return Contrast(pairs=pairs, looks=0, mean=mean, sd=sd, fault=fault)
    level = null_table.load(2, horizon).nominal(LEVEL)
    half = float(special.stdtrit(pairs - 1, 1 - level / 2)) * sd / pairs**0.5
    return Contrast(
        pairs=pairs,
        looks=looks,
        mean=mean,
        sd=sd,
        p_sequential=float(running(paired_p(m), m.pairs, sides=2, horizon=horizon)[-1]),
        p_equivalence_sequential=float(running(tost_p(m, margin), m.pairs, sides=1, horizon=horizon)[-1]),
        ci_level=1 - level,
        ci_low=mean - half,
        ci_high=mean + half,
    )


def _upper(m: Moments, distance: np.ndarray, sides: int) -> np.ndarray:
    """p of a distance from the null's edge in units of the metric; for two sides at most 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = distance * np.sqrt(m.pairs) / m.sd
        p = np.minimum(1.0, sides * special.stdtr(np.maximum(m.pairs - 1, 1), -t))
    return np.where((m.pairs >= FIRST_LOOK) & (m.sd > 0), p, 1.0)
