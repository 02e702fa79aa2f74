"""What a subspace would catch of a matrix by chance: mean, variance and z-score, in closed form. No torch.

A matrix X (m, n) is compared with the first k left directions U and k right directions V of a weight. Its energy
fractions are left ‖UᵀX‖²/‖X‖², right ‖XV‖²/‖X‖², core ‖UᵀXV‖²/‖X‖², and either = left + right − core. The null says
that U and V are independent Haar-random frames, or equally that X is turned at random and keeps its singular values.
"""

import math
from typing import Literal

Side = Literal["left", "right", "core", "either"]
SIDES: tuple[Side, ...] = ("left", "right", "core", "either")


def chance(side: Side, k: int, shape: tuple[int, int]) -> float:
    """Expected energy fraction of k random directions in a matrix of `shape` (m, n); 0 to 1.

    k/m, k/n, k²/(mn) and 1 − (1 − k/m)(1 − k/n): the trace of a Haar projector over its dimension.
    """
    m, n = shape
    left, right = min(k, m) / m, min(k, n) / n
    return {"left": left, "right": right, "core": left * right, "either": 1 - (1 - left) * (1 - right)}[side]


def _moments(k: int, d: int) -> tuple[float, float]:
    """α, β of E[tr(PA)²] = α tr(A)² + β tr(A²) for a Haar projector P of rank k in d dimensions, A symmetric.

    Source: second-order Weingarten calculus on O(d) (Collins and Śniady, Comm. Math. Phys. 264, 2006).
    """
    if k >= d:
        return 1.0, 0.0
    p = k / d
    v = 2 * p * (1 - p) / (d + 2)
    return p * p - v / (d - 1), v * d / (d - 1)


def variance(side: Side, k: int, shape: tuple[int, int], concentration: float) -> float:
    """Variance of an energy fraction under the null.

    `concentration` is Σ wᵢ² with wᵢ = σᵢ²/Σσ² of X: 1/rank for equal singular values, 1 for rank one. The usual i.i.d.
    formula forgets it and is several times too small for a gradient of low rank. Exact; derived for issue 5 by taking
    `_moments` over U and then over V; `either` is the core of the complements, hence its variance is theirs.
    """
    m, n = shape
    k_left, k_right = min(k, m), min(k, n)
    if side == "left":
        return _one_sided(k_left, m, concentration)
    if side == "right":
        return _one_sided(k_right, n, concentration)
    if side == "either":
        k_left, k_right = m - k_left, n - k_right
    alpha_m, beta_m = _moments(k_left, m)
    alpha_n, beta_n = _moments(k_right, n)
    # With B = XᵀX/‖X‖², tr B = 1 and tr B² = concentration; Q = VVᵀ.
    trace_squared = alpha_n + beta_n * concentration  # E tr(QB)²
    square_trace = (alpha_n + beta_n / 2) * concentration + beta_n / 2  # E tr(QBQB)
    mean = (k_left / m) * (k_right / n)
    return max(0.0, alpha_m * trace_squared + beta_m * square_trace - mean * mean)


def _one_sided(k: int, d: int, concentration: float) -> float:
    alpha, beta = _moments(k, d)
    return max(0.0, alpha + beta * concentration - (k / d) ** 2)


def z_score(side: Side, fraction: float, k: int, shape: tuple[int, int], concentration: float) -> float | None:
    """How many standard deviations of the null a fraction lies from chance; None where the null has no spread.

    A score, not a Gaussian quantile: with X close to rank one the core's null is a product of Betas, with a heavy tail.
    """
    spread = variance(side, k, shape, concentration)
    # Below rounding there is no spread to measure in: k spans the whole side.
    return (fraction - chance(side, k, shape)) / math.sqrt(spread) if spread > 1e-18 else None
