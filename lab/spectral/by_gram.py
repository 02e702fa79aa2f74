"""The strongest directions of many narrow weights, by Chebyshev filters of their Gram matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lab.process import heartbeat
from lab.spectral.convergence import degree_for, error_angle

# The width up to which a Gram matrix is taken: on a CPU where it costs less than the products it saves; a GPU waits for
# small steps one after another, and these go through all weights at once (timed at 1280, where 80 are 0.5 GB).
GRAM_UP_TO = {"cpu": 512, "cuda": 2048}
FIRST_DEGREE, MOST_DEGREE = 6, 16
MOST_CYCLES = 6  # restarts; the residual says what was reached
LEAST_SPREAD = 1e-2  # of the squared values over a block, for which float32 is enough
LARGEST = math.log(1e37)  # that a filter may make of a direction
LARGEST_POWER = 125  # of two, whose inverse float32 has in full
STRIP = 128  # rows of a Gram matrix at a time; what lies below the diagonal is copied


@dataclass(frozen=True)
class ByGram:
    """The strongest directions of b weights of width n; nothing but `resolved` holds of one that it is False for."""

    values: Tensor  # (b, q) λ = σ², descending
    V: Tensor  # (b, n, q), orthonormal columns
    residual: Tensor  # (b,) largest ‖Av − λv‖/λ over the first k
    degrees: list[int]  # what each should start with next time
    resolved: list[bool]  # False where the values of a block span too much for float32
    products: int  # of a Gram matrix with a block, over all b


def by_gram(
    weights: Sequence[Tensor], V: Tensor, edges: Sequence[float], k: int, degrees: Sequence[int], tolerance: float
) -> ByGram:
    """Turn spanning guesses V (b, n, q) into the q strongest directions of A = WᵀW of b float32 weights (m, n), m ≥ n.

    A filter T_d(2A/e − I) favours what lies above the edge e, the λ_q of last time, or anything positive where that is
    unknown (Zhou, Saad, Tiago and Chelikowsky, J. Comput. Phys. 219, 2006). Weights whose `error_angle` is beyond the
    `tolerance` (radians) start again at the λ_q just found, with the degree that this should take.
    """
    b, _, q = V.shape
    order = sorted(range(b), key=lambda i: -degrees[i])
    B = _shifted_grams([weights[i] for i in order], [edges[i] for i in order])
    values, directions, residual = V.new_empty(b, q), torch.empty_like(V), V.new_empty(b)
    following, resolved, products = [0] * b, [True] * b, 0
    active, block = order, V[order]
    edge = V.new_tensor([edges[i] for i in order])
    degree = [min(MOST_DEGREE, degrees[i] + degrees[i] % 2) for i in order]
    for cycle in range(MOST_CYCLES):
        heartbeat.beat()
        degree = _finite(B, degree)
        Q = torch.linalg.qr(_even(_filter(B, block, degree))).Q
        image = B @ Q
        products += sum(degree) + len(active)
        beta, coordinates = torch.linalg.eigh(Q.mT @ image)
        beta, coordinates = beta.flip(-1), coordinates.flip(-1)
        X = Q @ coordinates
        lengths = torch.linalg.vector_norm(image @ coordinates[..., :k] - X[..., :k] * beta[:, None, :k], dim=-2)
        now, off = (beta + 2) * (edge / 4)[:, None], (lengths / (beta[:, :k] + 2)).amax(-1)
        values[active], directions[active], residual[active] = now, X, off
        again: list[tuple[int, int]] = []  # degree, place
        errors = error_angle(off, now, k).tolist()
        for place, (i, error, held) in enumerate(zip(active, errors, now.tolist(), strict=True)):
            resolved[i] = held[-1] > LEAST_SPREAD * held[0]
            if not resolved[i]:
                continue
            if cycle == 0:
                following[i] = min(MOST_DEGREE, degree_for(degree[place], error, tolerance, held, k))
            if error > tolerance:
                again.append((min(MOST_DEGREE, degree_for(0, error, tolerance, held, k)), place))
        if not again:
            break
        again.sort(reverse=True)
        places = [place for _, place in again]
        degree, active, block = [d for d, _ in again], [active[place] for place in places], X[places]
        grown = edge[places] / now[places, -1]
        B = B[places] * grown[:, None, None]
        B.diagonal(dim1=-2, dim2=-1).add_(2 * (grown - 1)[:, None])
        edge = now[places, -1]
    return ByGram(values, directions, residual, following, resolved, products)


def _shifted_grams(weights: Sequence[Tensor], edges: Sequence[float]) -> Tensor:
    """B = 4A/e − 2I, which takes λ in [0, e] to [−2, 2]: (b, n, n)."""
    n = weights[0].shape[1]
    strip = STRIP if weights[0].shape[0] >= 2 * n else n
    B = weights[0].new_empty(len(weights), n, n)
    for gram, W, edge in zip(B, weights, edges, strict=True):
        for start in range(0, n, strip):
            end = min(n, start + strip)
            out = gram[start:end, start:]
            torch.addmm(out, W[:, start:end].mT, W[:, start:], beta=0, alpha=4 / edge, out=out)
            gram[end:, start:end] = gram[start:end, end:].mT
    B.diagonal(dim1=-2, dim2=-1).sub_(2)
    return B


def _finite(B: Tensor, degrees: Sequence[int]) -> list[int]:
    """Degrees for which no direction can grow beyond float32, since λ₁ is at most the trace: T_d(x) ≤ (2x)^d."""
    traces = (B.diagonal(dim1=-2, dim2=-1).sum(-1) + 2 * B.shape[-1]).tolist()  # 4/e of A's
    safe = [max(2, 2 * int(LARGEST / math.log(max(trace, 2.0)) / 2)) for trace in traces]
    return list(accumulate((min(pair) for pair in zip(degrees, safe, strict=True)), min))  # still descending


def _even(block: Tensor) -> Tensor:
    """The block with each column's largest entry in [0.5, 1), by a power of two, which leaves Q as it is.

    A filter makes entries of up to 1e37, and CUDA's QR sums squares as they are, where LAPACK's scales them.
    """
    power = torch.frexp(block.abs().amax(-2, keepdim=True)).exponent.clamp(-LARGEST_POWER, LARGEST_POWER)
    return torch.ldexp(block, -power)


def _filter(B: Tensor, block: Tensor, degrees: Sequence[int]) -> Tensor:
    """T_d(B/2) of a block (b, n, q) in place, even degrees d descending: T_{d+1}(B/2) = B T_d(B/2) − T_{d−1}(B/2)."""
    before, now = block, torch.bmm(B, block).div_(2)
    for done in range(1, degrees[0]):
        held = sum(degree > done for degree in degrees)
        before[:held].baddbmm_(B[:held], now[:held], beta=-1)
        before, now = now, before
    return block
