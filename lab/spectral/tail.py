"""Upper quantiles of the energy fractions that random directions catch. No torch."""

import math

import numpy as np
from scipy import special

from lab.spectral.chance import FLAT, Side, chance, core_widths, variance

NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
REACH = 40.0  # a product's law is integrated over e⁻⁴⁰ to 1 of the probability it hangs on


def quantile(side: Side, exceeded: float, k: int, shape: tuple[int, int], concentration: float) -> float | None:
    """The energy fraction that chance exceeds with at most about this probability; None where the null has no spread.

    Exact for X of rank one: left and right are Beta(k/2, (m − k)/2) and Beta(k/2, (n − k)/2), core is their product,
    1 − either the product of what they leave. Of other X a concentration tells the exact variance and no more. Taken is
    the larger of two laws that have it: that of rank one narrowed about its mean, which is that of one direction above
    a flat bulk, and a Beta, which is nearly that of equal singular values; other spectra lie between. The second is the
    larger where directions catch more than half by chance, so that the upper tail is the short one.

    Simulated on the left, k = 4 and 10 of 64, chance exceeds the 1 % (0.1 %) quantile in 0.8 to 1.0 % (0.06 to 0.11 %)
    with one direction above a bulk, 0.6 to 0.7 % (0.03 to 0.04 %) with σᵢ² ∝ 1/i, and with equal singular values in
    0.7 to 0.8 % (0.04 to 0.07 %) at rank 2, 0.1 to 0.3 % (0.00 %) at 30; k = 30 of 40, in 0.3 %, 0.5 % and 1.0 to
    1.1 % (0.00 %, 0.02 % and 0.11 to 0.14 %). Core and either the same, but for up to 1.3 % (0.18 %) at k = 40 of 44.
    """
    spread = variance(side, k, shape, concentration)
    if spread == 0:
        return None
    rank_one = _rank_one(side, exceeded, k, shape)
    if concentration > 1 - FLAT:
        return rank_one
    mean, narrower = chance(side, k, shape), math.sqrt(spread / variance(side, k, shape, 1.0))
    size = mean * (1 - mean) / spread - 1
    beta = _one((mean * size, (1 - mean) * size), exceeded, upper=True)
    return max(beta, mean + narrower * (rank_one - mean))


def _rank_one(side: Side, exceeded: float, k: int, shape: tuple[int, int]) -> float:
    laws = [(j / 2, (d - j) / 2) for j, d in zip(core_widths(side, k, shape), shape, strict=True) if j < d]
    upper = side != "either"
    value = _one(laws[0], exceeded, upper) if len(laws) == 1 else _two(laws, exceeded, upper)
    return value if upper else 1 - value


def _one(law: tuple[float, float], tail: float, upper: bool) -> float:
    return float((special.betainccinv if upper else special.betaincinv)(*law, tail))


def _two(laws: list[tuple[float, float]], tail: float, upper: bool) -> float:
    """The value beyond which (upper), or below which, a product of two independent Betas lies with probability `tail`.

    By bisection of P(XY > t) = ∫ P(Y > t/x(u)) du, u = P(X > x) from 0 to P(X > t), and its like for the lower tail.
    """
    X, Y = laws
    beyond, inverse = (special.betaincc, special.betainccinv) if upper else (special.betainc, special.betaincinv)

    def probability(t: float) -> float:
        edge = float(beyond(*X, t))
        last = math.log(max(edge, 1e-300)) if upper else 0.0
        first = last - REACH if upper else max(-REACH, math.log(max(edge, 1e-300)))
        half = (last - first) / 2
        u = np.exp(first + half * (NODES + 1))
        inside = beyond(*Y, np.minimum(1.0, t / np.maximum(inverse(*X, u), t)))
        return float(half * (WEIGHTS * u * inside).sum()) + (0.0 if upper else edge)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (probability(middle) > tail) == upper:
            low = middle
        else:
            high = middle
    return (low + high) / 2
