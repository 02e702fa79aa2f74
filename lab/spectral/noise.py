"""Noise and signal in a spectrum: random-matrix edges, spikes and intruders."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from lab.spectral.scale import scale_of

# 99 % quantile of the Tracy–Widom law of order 1 (Johnstone, Ann. Statist. 29, 2001): how far the largest singular
# value of pure noise may lie beyond the edge, in units of its own fluctuation, where the noise level is known.
TRACY_WIDOM_99 = 2.0234


def marchenko_pastur_edge(shape: tuple[int, int], noise: float) -> float:
    """Largest singular value, asymptotically, of a matrix of `shape` with i.i.d. entries of standard deviation `noise`.

    noise · (√m + √n) (Marchenko and Pastur 1967).
    """
    return noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def noise_level(S: Tensor, shape: tuple[int, int]) -> float:
    """Standard deviation of the entries of the noise, from the median of a whole spectrum (Gavish and Donoho 2014).

    The median is unmoved by signal in fewer than half of the directions. 0 for a matrix of less than half rank.
    """
    return float(S.double().quantile(0.5)) / math.sqrt(max(shape) * _median_eigenvalue(min(shape) / max(shape)))


def gavish_donoho_threshold(S: Tensor, shape: tuple[int, int]) -> float:
    """Singular value below which keeping a direction adds more noise than signal; the noise level is unknown.

    ω(β) · median(S), β = min/max of the shape, ω = λ*(β)/√μ_β, λ* = √(2(β+1) + 8β/(β+1+√(β²+14β+1)))
    (Gavish and Donoho, IEEE Trans. Inf. Theory 60, 2014); 2.858 · median for a square matrix.
    """
    beta = min(shape) / max(shape)
    best = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta * beta + 14 * beta + 1)))
    return best / math.sqrt(_median_eigenvalue(beta)) * float(S.double().quantile(0.5))


def spikes(S: Tensor, shape: tuple[int, int]) -> int:
    """Number of singular values of a whole spectrum above what noise of its level reaches in 99 of 100 matrices.

    The Marchenko–Pastur edge plus the 99 % quantile of the largest value's distance from it, centred and scaled after
    Johnstone (2001): Tracy–Widom's, and what the noise level's own error adds, by `_beyond`.
    """
    noise = noise_level(S, shape)
    m, n = max(shape), min(shape)
    if n <= 2:
        return 0  # nothing to compare them with: of two values, neither is twice their median
    centre = (math.sqrt(m - 1) + math.sqrt(n)) ** 2
    scale = (math.sqrt(m - 1) + math.sqrt(n)) * (1 / math.sqrt(m - 1) + 1 / math.sqrt(n)) ** (1 / 3)
    edge = noise * math.sqrt(centre + _beyond(m, n) * scale)
    # A low-rank change has no noise at all; rounding must then not count as signal.
    floor = max(shape) * torch.finfo(torch.float32).eps * float(S[0])
    return int((max(edge, floor) < S).sum())


def _beyond(m: int, n: int) -> float:
    """99 % quantile of the largest eigenvalue's distance from the edge, whose noise level is taken from the median.

    The median is off by more in small and square matrices: with Tracy–Widom's quantile alone 4 % of 64 x 64 matrices of
    noise have a spike, and 2.8 % of 96 x 64. What is added was fitted to the bidiagonal model of Gaussian matrices
    (Dumitriu and Edelman, J. Math. Phys. 43, 2002), at 32 shapes; in new draws of it, 36 shapes from 3 x 3 to 4096 x 64
    and 1024 x 1024, it leaves 0.8 to 1.4 %, less (0.2 to 0.5 %) for oblong matrices of 3 or 5 columns. A median of an
    odd number of values is one value, and off by more.
    """
    odd = 11 + 250 / n**2 if n % 2 else 2
    return TRACY_WIDOM_99 + (9 * math.sqrt(n) + odd) / m


def intruders(U: Tensor, known: Tensor, cosine: float = 0.6) -> int:
    """Number of W's strongest left directions U (out, k) that are none of `known` (out, r): max_j |uᵢᵀu⁰_j| < cosine.

    Intruder dimensions localise forgetting (Shuttleworth et al., "LoRA vs Full Fine-tuning", arXiv 2410.21228); `known`
    are W₀'s, by `left_directions`.
    """
    if not known.shape[1]:
        return U.shape[1]
    return int(((U.float().mT @ known.to(U.device)).abs().amax(1) < cosine).sum())


def left_directions(weight: Tensor) -> Tensor:
    """All left singular vectors (out, r) of non-zero σ, weakest first, float32; none of a weight that is not finite.

    By the float64 Gram matrix of the smaller side, a quarter of an SVD's time. r is the numerical rank in float32.
    """
    scale = scale_of(weight.detach())
    if not scale.sound:
        return weight.new_zeros(weight.shape[0], 0, dtype=torch.float32)
    W = scale.down(weight.detach()).double()
    tall = W.shape[0] > W.shape[1]
    squares, vectors = torch.linalg.eigh(W.mT @ W if tall else W @ W.mT)
    S = squares.clamp_min(0).sqrt()
    held = max(W.shape) * torch.finfo(torch.float32).eps * S[-1] < S
    return ((W @ vectors[:, held]) / S[held] if tall else vectors[:, held]).float().contiguous()


@lru_cache(maxsize=256)
def _median_eigenvalue(beta: float) -> float:
    """Median of the Marchenko–Pastur law of variance 1 and ratio β ≤ 1."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    # λ = low + (high − low) sin²φ makes the square-root ends of the density smooth; midpoints avoid 0/0.
    cells = 4000
    edges = torch.linspace(0, math.pi / 2, cells + 1, dtype=torch.float64)
    angle = (edges[1:] + edges[:-1]) / 2
    density = ((high - low) * angle.sin() * angle.cos()).square() / (low + (high - low) * angle.sin().square())
    mass = density.cumsum(0)
    half = mass[-1] / 2
    cell = int((mass < half).sum())  # the median lies in this cell
    before = mass[cell - 1] if cell else mass.new_zeros(())
    median = edges[cell] + (half - before) / density[cell] * (edges[1] - edges[0])
    return low + (high - low) * float(median.sin().square())
