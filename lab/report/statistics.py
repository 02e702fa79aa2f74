"""Paired statistics: interval, tests, and the verdict that pairs of runs license."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

Verdict = Literal["a_better", "b_better", "equivalent", "inconclusive", "withheld", "not_judged"]

LEVEL = 0.05  # of every verdict; the interval is its complement, 95 %
AA_LEVEL = 0.01  # an A/A pair below this says that the pairing itself is broken
FEWEST_PAIRS = 4  # a paired t on three differences has an interval too wide and too dependent on normality to judge
POWER = 0.8  # the usual chance at which a study is called large enough
MOST_SEEDS = 1000  # beyond this a number of seeds is no advice
NODES = 64  # of the Gauss-Legendre rule over a smooth density: 48 move no power of 4 to 1,000 pairs by 1e-12


@dataclass(frozen=True, kw_only=True)
class PairedStatistics:
    """Statistics of the differences a − b, a pair per seed; what cannot be computed is None, and `fault` says why."""

    pairs: int
    mean: float | None = None
    sd: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    p_equivalence: float | None = None
    margin: float | None = None
    fault: str | None = None


def paired_t(a: Sequence[float], b: Sequence[float], margin: float | None) -> PairedStatistics:
    """Paired t, its 95 % interval, and TOST at ±margin, all in units of the metric.

    Raises ValueError where a and b have different lengths.
    Source: Student 1908 (paired t); Schuirmann 1987 (TOST).
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}; pair them by seed first.")
    n = len(first)
    if n == 0:
        return PairedStatistics(pairs=0, margin=margin, fault="no seed was completed by both arms")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return PairedStatistics(pairs=n, margin=margin, fault="a value is not finite")
    differences = first - second
    mean = float(differences.mean())
    if n == 1:
        fault = "one pair has no spread, so nothing can be judged"
        return PairedStatistics(pairs=1, mean=mean, margin=margin, fault=fault)
    sd = float(differences.std(ddof=1))
    # Rounding alone spreads equal differences by about eps times the values; that is no variance to test against.
    if sd <= 8 * np.finfo(float).eps * max(np.abs(first).max(), np.abs(second).max()):
        fault = "every pair differs by exactly the same amount (zero variance): did the seed reach the runs?"
        return PairedStatistics(pairs=n, mean=mean, sd=sd, margin=margin, fault=fault)
    half = half_width(sd, n)
    return PairedStatistics(
        pairs=n,
        mean=mean,
        sd=sd,
        ci_low=mean - half,
        ci_high=mean + half,
        p_value=float(2 * special.stdtr(n - 1, -abs(mean) * math.sqrt(n) / sd)),
        p_equivalence=None if margin is None else tost(mean, sd, n, margin),
        margin=margin,
    )


def half_width(sd: float, n: int, alpha: float = LEVEL) -> float:
    """Half the 1 − alpha interval of the mean of n differences, by Student's t."""
    return float(special.stdtrit(n - 1, 1 - alpha / 2)) * sd / math.sqrt(n)


def tost(mean: float, sd: float, n: int, margin: float) -> float:
    """The larger p of the two one-sided tests that the true difference lies inside (−margin, margin).

    Source: Schuirmann 1987; p < 0.05 is the same as the 90 % interval lying inside the margin.
    """
    error = sd / math.sqrt(n)
    return float(special.stdtr(n - 1, (abs(mean) - margin) / error))


def bootstrap_interval(differences: Sequence[float], resamples: int = 2000) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean, seeded; information only, and None below four pairs.

    With few pairs it is too narrow; that of two reaches from one to the other, and leaves zero out half the time.
    Source: Efron 1979.
    """
    if len(differences) < FEWEST_PAIRS:
        return None
    values = np.asarray(differences, dtype=float)
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """The signed-rank p value, information only; None where every difference is zero.

    Source: Wilcoxon 1945.
    """
    from scipy import stats  # a second to import, and needed nowhere else

    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted so that all of them together err at most at the level of one; None stays None, uncounted.

    Source: Holm 1979.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for position, (p, i) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - position) * p))
        adjusted[i] = running
    return adjusted


def verdict(
    result: PairedStatistics,
    p_adjusted: float | None,
    p_equivalence: float | None,
    *,
    higher_is_better: bool,
    aa_p_value: float | None = None,
) -> tuple[Verdict, str]:
    """The verdict a contrast earns and the reason in words; `equivalent` takes precedence over better.

    Both p values are those of the family of contrasts, adjusted by Holm; None where nothing is tested.
    Source: issue 6; withheld below four pairs, or where the A/A pair differs at p < 0.01.
    """
    if result.fault:
        return "withheld", result.fault
    if result.pairs < FEWEST_PAIRS:
        return "withheld", f"{result.pairs} pairs are fewer than {FEWEST_PAIRS}"
    if aa_p_value is not None and aa_p_value < AA_LEVEL:
        return "withheld", f"the baseline differs from itself (A/A p = {aa_p_value:.2g} < {AA_LEVEL})"
    assert result.mean is not None
    assert result.ci_low is not None
    assert result.ci_high is not None
    if p_equivalence is not None and p_equivalence < LEVEL:
        adjusted = "TOST p" if p_adjusted is None else "Holm-adjusted TOST p"  # an A/A pair is alone
        return "equivalent", f"{adjusted} = {p_equivalence:.2g}: the difference lies inside ±{result.margin:.3g}"
    if p_adjusted is not None and p_adjusted < LEVEL:
        a_wins = (result.mean > 0) == higher_is_better
        return ("a_better" if a_wins else "b_better"), f"Holm-adjusted p = {p_adjusted:.2g}"
    if result.ci_low <= 0 <= result.ci_high:
        beyond = "no margin was declared" if result.margin is None else "equivalence within the margin is not shown"
        return "inconclusive", f"the interval holds zero, and {beyond}"
    if p_adjusted is None:
        return (
            "inconclusive",
            f"the interval excludes zero (p = {result.p_value:.2g}), and no difference is judged here",
        )
    return "inconclusive", f"the interval excludes zero, but not after Holm's correction (p = {p_adjusted:.2g})"


def seeds_to_decide(mean: float, sd: float, margin: float | None, level: float = LEVEL) -> int | None:
    """The fewest pairs that decide at 80 % power, for either verdict, if this mean and spread are the true ones.

    None where more than 1,000 would be needed. `level` is that of one contrast: smaller under Holm.
    Source: noncentral t (Owen 1965); for TOST Phillips 1990.
    """
    n = np.arange(FEWEST_PAIRS, MOST_SEEDS + 1)
    decides = difference_power(mean, sd, n, level) >= POWER
    if margin is not None:
        decides |= equivalence_power(mean, sd / np.sqrt(n), n - 1, margin, level) >= POWER
    return int(n[decides][0]) if decides.any() else None


def difference_power(mean: float, sd: float, n: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The chance that a two-sided paired t on n pairs finds a true difference `mean` of standard deviation `sd`."""
    critical = special.stdtrit(n - 1, 1 - level / 2)
    shift = abs(mean) / sd * np.sqrt(n)
    power = 1 - special.nctdtr(n - 1, shift, critical) + special.nctdtr(n - 1, shift, -critical)
    # scipy's noncentral cdf is nan beyond a shift of about ten standard errors, where the power is as good as 1.
    return np.where(np.isnan(power), 1.0, power)


def equivalence_power(
    mean: float, error: np.ndarray, freedom: np.ndarray, margin: float, level: float = LEVEL
) -> np.ndarray:
    """The chance that TOST finds a true difference `mean` inside ±margin, exact for normal data.

    `error` is the true standard error of the mean, and `freedom` the degrees of freedom of its estimate s. TOST holds
    where |mean found| < margin − t s: a normal probability given s, integrated over the distribution of s.
    Source: Phillips 1990, there as a difference of two of Owen's Q functions, which is the same integral.
    """
    error, freedom = np.asarray(error, dtype=float)[..., None], np.asarray(freedom, dtype=float)[..., None]
    critical = special.stdtrit(freedom, 1 - level)
    # s / error is chi over √freedom: all but 1e-14 of it lies between these quantiles, and no s beyond `most` passes.
    lowest, highest = (np.sqrt(special.chdtri(freedom, tail) / freedom) for tail in (1 - 1e-14, 1e-14))
    most = np.clip(margin / (critical * error), lowest, highest)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    ratio = lowest + (most - lowest) * (nodes + 1) / 2
    density = np.exp(
        math.log(2)
        + freedom / 2 * np.log(freedom / 2)
        - special.gammaln(freedom / 2)
        + (freedom - 1) * np.log(ratio)
        - freedom * ratio**2 / 2
    )
    reach = margin / error - critical * ratio  # in standard errors
    inside = special.ndtr(reach - mean / error) - special.ndtr(-reach - mean / error)
    return np.asarray(((most - lowest) / 2 * weights * density * inside).sum(axis=-1))


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where too few values exist for one."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
