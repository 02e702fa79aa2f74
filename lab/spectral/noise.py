"""Where noise ends and signal begins in a spectrum: random-matrix edges, spikes and intruders."""

import math
from functools import lru_cache

import torch
from torch import Tensor

# 99 % quantile of the Tracy–Widom law of order 1 (Johnstone, Ann. Statist. 29, 2001): how far the largest singular
# value of pure noise may lie beyond the edge, in units of its own fluctuation.
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
    """How many singular values of a whole spectrum stand above what noise of its level reaches in 99 of 100 matrices.

    The Marchenko–Pastur edge plus the 99 % Tracy–Widom quantile, centred and scaled after Johnstone (2001).
    """
    noise = noise_level(S, shape)
    m, n = max(shape), min(shape)
    if n == 1:
        return 0  # one value: nothing to compare it with
    centre = (math.sqrt(m - 1) + math.sqrt(n)) ** 2
    scale = (math.sqrt(m - 1) + math.sqrt(n)) * (1 / math.sqrt(m - 1) + 1 / math.sqrt(n)) ** (1 / 3)
    edge = noise * math.sqrt(centre + TRACY_WIDOM_99 * scale)
    # A low-rank change has no noise at all; rounding must then not count as signal.
    floor = max(shape) * torch.finfo(torch.float32).eps * float(S[0])
    return int((max(edge, floor) < S).sum())


def intruders(U: Tensor, known: Tensor, cosine: float = 0.6) -> int:
    """How many of W's strongest left directions U (out, k) are none of `known` (out, r): max_j |uᵢᵀu⁰_j| < cosine.

    Intruder dimensions localise forgetting (Shuttleworth et al., "LoRA vs Full Fine-tuning", arXiv 2410.21228); `known`
    are W₀'s, by `left_directions`.
    """
    if not known.shape[1]:
        return U.shape[1]
    return int(((U.float().mT @ known.to(U.device)).abs().amax(1) < cosine).sum())


def left_directions(weight: Tensor) -> Tensor:
    """All left singular vectors (out, r) of non-zero σ, weakest first, float32.

    By the float64 Gram matrix of the smaller side, a quarter of an SVD's time. r is the numerical rank in float32.
    """
    W = weight.detach().double()
    tall = W.shape[0] > W.shape[1]
    squares, found = torch.linalg.eigh(W.mT @ W if tall else W @ W.mT)
    S = squares.clamp_min(0).sqrt()
    held = max(W.shape) * torch.finfo(torch.float32).eps * S[-1] < S
    return ((W @ found[:, held]) / S[held] if tall else found[:, held]).float().contiguous()


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
