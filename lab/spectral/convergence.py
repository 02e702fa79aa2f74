"""Errors of iterated directions against the true ones, and the effort that would take them within a tolerance."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_GAP = 0.02  # of λ_k; with less between what is wanted and what is not held, no effort tells them apart
MOST_GROWTH = 1e3  # of the strongest direction over the k-th in one filter; more, and float32 loses the k-th


def error_angle(residual: Tensor, values: Tensor, k: int) -> Tensor:
    """The angle, about, by which the first k directions are off: (b,) radians, residual / (1 − λ_q/λ_k).

    `residual` (b,) is the largest ‖Av − λv‖/λ over the first k, `values` (b, q) the λ = σ², descending. The gap that
    counts is to what the block does not hold, since Rayleigh–Ritz has told apart what it does (Davis and Kahan, SIAM
    J. Numer. Anal. 7, 1970; Saad, Numerical Methods for Large Eigenvalue Problems, 2011, §4.6).
    """
    beyond = torch.where(values[:, k - 1] > 0, values[:, -1] / values[:, k - 1], 0.0)
    return residual / (1 - beyond).clamp_min(LEAST_GAP)


def degree_for(done: int, error: float, tolerance: float, values: Sequence[float], k: int) -> int:
    """The degree of a Chebyshev filter that should leave the tolerance where degree `done` left the angle `error`.

    `values` are the λ found; the filter's edge is their last. Even, at least 2, and no more than float32 stands.
    """
    edge = values[-1]
    wanted, top = _growth(values[k - 1] / edge), _growth(values[0] / edge)
    degree = done + math.log(max(error / tolerance, 1e-9)) / wanted
    most = math.log(MOST_GROWTH) / max(top - wanted, 1e-9)
    return max(2, 2 * math.ceil(min(degree, most) / 2))


def _growth(ratio: float) -> float:
    """The sum that a degree more adds to the logarithm of T_d(2 ratio − 1)."""
    return math.acosh(2 * max(ratio, 1 + LEAST_GAP) - 1)
