"""Chance levels of energy fractions: mean, variance and z-score under the null, in closed form. No torch.

A matrix X (m, n) is compared with the first k left directions U and k right directions V of a weight. Its energy
fractions are left ‖UᵀX‖²/‖X‖², right ‖XV‖²/‖X‖², core ‖UᵀXV‖²/‖X‖², and either = left + right − core. The null says
that U and V are independent Haar-random frames, or equally that X is turned at random and keeps its singular values.
"""

import math
from typing import Literal

Side = Literal["left", "right", "core", "either"]
SIDES: tuple[Side, ...] = ("left", "right", "core", "either")

FLAT = 1e-5  # relative excess of a concentration over its least value that is rounding of float32: X is orthogonal


def chance(side: Side, k: int, shape: tuple[int, int]) -> float:
    """Expected energy fraction of k random directions in a matrix of `shape` (m, n); 0 to 1.

    k/m, k/n, k²/(mn) and 1 − (1 − k/m)(1 − k/n): the trace of a Haar projector over its dimension.
    """
    m, n = shape
    left, right = min(k, m) / m, min(k, n) / n
    return {"left": left, "right": right, "core": left * right, "either": 1 - (1 - left) * (1 - right)}[side]


def variance(side: Side, k: int, shape: tuple[int, int], concentration: float) -> float:
    """Variance of an energy fraction under the null; 0 where nothing is left to chance.

    `concentration` is Σ wᵢ² with wᵢ = σᵢ²/Σσ² of X: 1/rank for equal singular values, 1 for rank one. The usual i.i.d.
    formula forgets it and is several times too small for a gradient of low rank. Exact; `either` is the core of the
    complements, hence its variance is theirs.

    E tr(PA)² = p² tr(A)² + s (d tr(A²) − tr(A)²) for a Haar projector P of rank k in d dimensions, p = k/d, s by
    `_slope` (Collins and Śniady, Comm. Math. Phys. 264, 2006), taken over U and then over V; p²q² is taken off by hand,
    so that nothing cancels.
    """
    (k_left, k_right), (m, n) = core_widths(side, k, shape), shape
    p, q, s, t = k_left / m, k_right / n, _slope(k_left, m), _slope(k_right, n)
    of_right = t * _excess(n, concentration)
    across = t * ((n / 2 - 1) * m * concentration - n * concentration + 1 + n * m / 2)
    return p * p * of_right + s * (q * q * _excess(m, concentration) + across)


def z_score(side: Side, fraction: float, k: int, shape: tuple[int, int], concentration: float) -> float | None:
    """Standard deviations of the null by which a fraction lies above chance; None where the null has no spread.

    A score, not a Gaussian quantile: upper tails are heavy where X is near rank one (`lab.spectral.tail`).
    """
    spread = variance(side, k, shape, concentration)
    return (fraction - chance(side, k, shape)) / math.sqrt(spread) if spread > 0 else None


def core_widths(side: Side, k: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Numbers of left and right directions of which a side is the core; `either` is the complement of one."""
    m, n = shape
    left, right = min(k, m), min(k, n)
    return {"left": (left, n), "right": (m, right), "core": (left, right), "either": (m - left, n - right)}[side]


def _slope(k: int, d: int) -> float:
    """2p(1 − p)/((d + 2)(d − 1)), p = k/d; 0 where P is nothing or everything."""
    return 2 * k * (d - k) / (d * d * (d + 2) * (d - 1)) if 0 < k < d else 0.0


def _excess(d: int, concentration: float) -> float:
    excess = d * min(1.0, concentration) - 1
    return excess if excess > FLAT else 0.0
