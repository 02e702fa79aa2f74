"""How far up chance reaches: quantiles of the energy fractions that random directions catch. No torch."""

import math

import numpy as np
from scipy import special

from lab.spectral.chance import Side, chance, counts, variance

NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
REACH = 40.0  # a product's law is integrated over e⁻⁴⁰ to 1 of the probability it hangs on


def quantile(side: Side, exceeded: float, k: int, shape: tuple[int, int], concentration: float) -> float | None:
    """The energy fraction that chance exceeds with at most about this probability; None where the null has no spread.

    Exact for X of rank one: left and right are Beta(k/2, (m − k)/2) and Beta(k/2, (n − k)/2), core is their product,
    1 − either the product of what they leave. For other X the same law about its mean, narrowed to the exact variance.
    That is near for one direction above a bulk, and too high for flatter spectra, whose upper tails are lighter; a
    concentration does not tell these apart. Simulated on the left, k = 4 and 10 of 64, chance exceeds the 1 % (0.1 %)
    quantile in 0.8 to 1.0 % (0.06 to 0.11 %) with one direction above a bulk, 0.6 to 0.7 % (0.03 to 0.04 %) with
    σᵢ² ∝ 1/i, and with equal singular values in 0.7 to 0.8 % (0.04 to 0.07 %) at rank 2, 0.1 to 0.3 % (0.00 %) at 30.
    """
    spread = variance(side, k, shape, concentration)
    if spread == 0:
        return None
    d_left, d_right = shape
    k_left, k_right = counts(side, k, shape)
    laws = [(j / 2, (d - j) / 2) for j, d in ((k_left, d_left), (k_right, d_right)) if j < d]
    upper = side != "either"
    found = _one(laws[0], exceeded, upper) if len(laws) == 1 else _two(laws, exceeded, upper)
    mean, narrower = chance(side, k, shape), math.sqrt(spread / variance(side, k, shape, 1.0))
    return mean + narrower * ((found if upper else 1 - found) - mean)


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
