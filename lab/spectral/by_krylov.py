"""The strongest directions of a weight of any width and spectrum, from block Krylov spaces."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.process import heartbeat
from lab.spectral.by_gram import MOST_DEGREE, by_gram
from lab.spectral.convergence import error_angle

FIRST_DEPTH, MOST_DEPTH = 4, 8
MOST_CYCLES = 8  # restarts, of which a first look at a flat spectrum needs most; the residual says what was reached
# A new block this far from orthogonal to the old ones is mostly rounding: the old ones hold all there is.
LEAST_ORTHOGONAL, MOST_TURNS = 1e-5, 3
GAIN = 2.2  # by which a block more brings directions closer, on the flat spectra that need most
WITHIN = 0.2  # of the tolerance goes to telling directions apart within the space


@dataclass(frozen=True)
class ByKrylov:
    """The strongest directions of one weight (m, n)."""

    U: Tensor  # (m, k), orthonormal columns
    S: Tensor  # (q,), descending
    V: Tensor  # (n, q), orthonormal columns
    residual: float  # largest ‖Wᵀu − σv‖/σ over the first k; 0 where these values are 0
    depth: int  # what to start with next time
    products: int  # of the weight with a block


def by_krylov(W: Tensor, V: Tensor, edge: float, k: int, depth: int, tolerance: float) -> ByKrylov:
    """Turn a spanning guess V (n, q) into the q strongest directions of a float32 weight (m, n), m ≥ n.

    Rayleigh–Ritz on [V, (WᵀW)V, …, (WᵀW)^depth V] (Golub, Luk and Overton 1981; Musco and Musco, NeurIPS 2015), again
    from there while their `error_angle` is beyond the `tolerance` (radians).
    """
    q = V.shape[1]
    deepest = max(0, min(MOST_DEPTH, V.shape[0] // q - 1))
    depth = min(depth, deepest)
    V = torch.linalg.qr(V).Q
    following, products = depth, 0
    for cycle in range(MOST_CYCLES):
        heartbeat.beat()
        U, S, V, residual = _cycle(W, V, edge, k, depth, tolerance)
        products += 2 * depth + 2
        values = S.square()
        values[-1] = values[-1].clamp_min(min(edge, float(values[k - 1])))  # the last value is found last, from below
        missed = float(error_angle(residual[None], values[None], k)) / tolerance
        short = math.ceil(math.log(max(missed, 1e-9)) / math.log(GAIN))
        if cycle == 0:  # too deep by a little is better than falling short
            following = max(1, min(MOST_DEPTH, depth + (short if missed > 1 else min(0, short + 2))))
        if missed <= 1:
            break
        depth, edge = min(short, deepest), float(S[-1]) ** 2 or edge
    return ByKrylov(U, S, V, float(residual), following, products)


def _cycle(
    W: Tensor, V: Tensor, edge: float, k: int, depth: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, q), m = V.shape, W.shape[0]
    space, image = V.new_empty(n, (depth + 1) * q), V.new_empty(m, (depth + 1) * q)
    space[:, :q] = V
    torch.mm(W, V, out=image[:, :q])
    for start in range(q, (depth + 1) * q, q):
        known = space[:, :start]
        # Balanced by column: a block may span many orders of magnitude.
        new = _unit_columns((image[:, start - q : start].mT @ W).mT)
        inside = known.mT @ new
        for _ in range(MOST_TURNS):
            new = torch.linalg.qr(new - known @ inside).Q
            inside = known.mT @ new
            if float(inside.abs().amax()) <= LEAST_ORTHOGONAL:
                break
        space[:, start : start + q] = new
        torch.mm(W, new, out=image[:, start : start + q])
    # Within the space the same question is a narrow one. More than k, since the gap is told from the values beyond.
    inner = by_gram(
        [image], torch.eye(image.shape[1], q)[None].to(V), [edge], 3 * q // 4, [MOST_DEGREE], WITHIN * tolerance
    )
    if inner.resolved[0]:
        S, coordinates = inner.values[0].sqrt(), inner.V[0]
        U, V = (image @ coordinates[:, :k]) / S[:k], space @ coordinates
    else:
        U, S, V = _graded(image, space, q)
        U = U[:, :k]
    residual = torch.linalg.vector_norm((U.mT @ W).mT - V[:, :k] * S[:k], dim=0)
    # Directions of value 0 are arbitrary; asking them to converge would never end.
    floor = S[0] * max(W.shape) * torch.finfo(S.dtype).eps
    lengths = residual / S[:k].clamp_min(torch.finfo(S.dtype).tiny)
    return U, S, V, torch.where(S[:k] > floor, lengths, 0).amax()


def _graded(image: Tensor, space: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V where values span orders of magnitude or vanish: by float64 and orthogonal steps alone."""
    wide = image.double()
    best = torch.linalg.eigh(wide.mT @ wide).eigenvectors[:, -q:].flip(-1).to(image.dtype)
    U, triangle = torch.linalg.qr(image @ best)
    left, S, right = torch.linalg.svd(triangle)
    return U @ left, S, space @ best @ right.mT


def _unit_columns(block: Tensor) -> Tensor:
    return block / torch.linalg.vector_norm(block, dim=0, keepdim=True).clamp_min(torch.finfo(block.dtype).tiny)
