"""Warm-started block iteration: the strongest directions of many equal-shaped weights, from those of last time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.spectral.spectrum import fix_signs

MOST_CYCLES = 4  # restarts; the residual says what was reached
# A new block this far from orthogonal to the old ones is mostly rounding: the old ones hold all there is.
LEAST_ORTHOGONAL = 1e-5
LEAST_SPREAD = 1e-2  # of the squared values over a block, for which float32 is enough
FILTERS = (6, 8)  # degrees
MOST_GROWTH = 1e4


@dataclass(frozen=True)
class Iterated:
    """The q strongest directions of b weights of one shape, as far as they were iterated."""

    U: Tensor  # (b, out, q), orthonormal columns
    S: Tensor  # (b, q), descending
    V: Tensor  # (b, in, q), orthonormal columns
    residual: Tensor  # (b,) largest ‖Wᵀu − σv‖/σ over the first k; 0 where these values are 0
    first_residual: Tensor  # (b,) the same after one cycle, by which the next depth is chosen
    products: int  # multiplications of one weight with a block of q columns that were spent, over all b


def iterate(weights: Sequence[Tensor], V: Tensor, k: int, depth: int, tolerance: float) -> Iterated:
    """Turn orthonormal guesses V (b, in, q) into the q strongest directions of b float32 weights (out, in).

    Rayleigh–Ritz on the block Krylov space [V, (WᵀW)V, …, (WᵀW)^depth V], restarted from its result for the weights
    whose residual is above `tolerance` (Golub, Luk and Overton 1981; Musco and Musco, NeurIPS 2015). Depth 0 is one
    pass of subspace iteration. Where the spectrum is flat, as Muon leaves it, depth 2 with q = 32 reaches with 6
    products of 2·m·n·q FLOPs what 8 plain passes, 24 products, do not: k = 10 singular values to 1e-4 (measured on a
    NanoChat's weights). `depth` is cut where the space would outgrow the smaller side.
    """
    q = V.shape[-1]
    depth = max(0, min(depth, min(weights[0].shape) // q - 1))
    U, S, V, residual = _cycle(weights, V, k, depth)
    first, products = residual.clone(), (2 * depth + 2) * len(weights)
    for _ in range(MOST_CYCLES - 1):
        active = torch.nonzero(residual > tolerance).flatten()
        if len(active) == 0:
            break
        chosen = [weights[i] for i in active.tolist()]
        U[active], S[active], V[active], residual[active] = _cycle(chosen, V[active], k, depth)
        products += (2 * depth + 2) * len(chosen)
    U, V = fix_signs(U, V)
    return Iterated(U, S, V, residual, first, products)


def times(weights: Sequence[Tensor], V: Tensor) -> Tensor:
    """W V for each weight (out, in) and its block (b, in, q): (b, out, q). The weights are never copied together."""
    return torch.stack([W @ block for W, block in zip(weights, V, strict=True)])


def times_transposed(weights: Sequence[Tensor], U: Tensor) -> Tensor:
    """WᵀU for each weight and its block (b, out, q): (b, in, q), reading each weight row by row."""
    return torch.stack([block.mT @ W for W, block in zip(weights, U, strict=True)]).mT


def _cycle(weights: Sequence[Tensor], V: Tensor, k: int, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, inner, q = V.shape
    space = V.new_empty(b, inner, (depth + 1) * q)
    image = V.new_empty(b, weights[0].shape[0], (depth + 1) * q)
    space[..., :q], image[..., :q] = V, times(weights, V)
    for start in range(q, (depth + 1) * q, q):
        known = space[..., :start]
        # Balanced by column: a block may span many orders of magnitude.
        new = _unit_columns(times_transposed(weights, image[..., start - q : start]))
        new = torch.linalg.qr(new - known @ (known.mT @ new)).Q
        inside = known.mT @ new
        if float(inside.abs().amax()) > LEAST_ORTHOGONAL:
            new = torch.linalg.qr(new - known @ inside).Q
        space[..., start : start + q], image[..., start : start + q] = new, times(weights, new)
    squares = torch.linalg.vector_norm(image[..., :q], dim=-2).square()
    # A Gram squares the spread of the values; beyond this one float32 would lose the weaker directions.
    if float((squares.amin(-1) / squares.amax(-1)).amin()) > LEAST_SPREAD:
        best, S = _strongest(image.mT @ image, q)
        U, V = (image @ best) / S[..., None, :], space @ best
    else:
        U, S, V = _graded(image, space, q)
    residual = times_transposed(weights, U[..., :k]) - V[..., :k] * S[..., None, :k]
    # Directions of value 0 are arbitrary; asking them to converge would never end.
    floor = S[..., :1] * max(weights[0].shape) * torch.finfo(S.dtype).eps
    lengths = torch.linalg.vector_norm(residual, dim=-2) / S[..., :k].clamp_min(torch.finfo(S.dtype).tiny)
    return U, S, V, torch.where(S[..., :k] > floor, lengths, 0).amax(-1)


def _strongest(gram: Tensor, q: int) -> tuple[Tensor, Tensor]:
    """The q strongest directions of images in a space, and their values, from its Gram (b, D, D): (b, D, q), (b, q).

    Chebyshev filters (Zhou, Saad, Tiago and Chelikowsky, J. Comput. Phys. 219, 2006) that start from the first q
    coordinates, which were the strongest last time: less than half the time of a full eigenvalue decomposition, and
    what they leave undone is below the residual of the space itself.
    """
    best = torch.eye(gram.shape[-1], q, dtype=gram.dtype, device=gram.device).expand(len(gram), -1, -1)
    image = gram[..., :q]
    for degree in FILTERS if gram.shape[-1] > q else ():
        quotients = (best * image).sum(-2)
        edge, top = quotients.amin(-1), quotients.amax(-1)
        # d steps favour the strongest over the edge by cosh(d·acosh(growth)); too much, and float32 loses the weakest.
        growth = max(float((2 * top / edge - 1).amax()), 1 + 1e-6)
        steps = max(1, min(degree, int(math.acosh(MOST_GROWTH) / math.acosh(growth))))
        scale = (2 / edge)[:, None, None]
        before, now = best, image * scale - best
        for _ in range(steps - 1):
            before, now = now, 2 * ((gram @ now) * scale - now) - before
        best = torch.linalg.qr(now).Q
        image = gram @ best
    values, turn = torch.linalg.eigh(best.mT @ image)
    return best @ turn.flip(-1), values.flip(-1).clamp_min(0).sqrt()


def _graded(image: Tensor, space: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same where values span many orders of magnitude or vanish: (U, S, V) by float64 and orthogonal steps."""
    wide = image.double()
    best = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -q:].flip(-1).to(image.dtype)
    U, triangle = torch.linalg.qr(image @ best)
    left, S, right = torch.linalg.svd(triangle)
    return U @ left, S, space @ best @ right.mT


def _unit_columns(block: Tensor) -> Tensor:
    return block / torch.linalg.vector_norm(block, dim=-2, keepdim=True).clamp_min(torch.finfo(block.dtype).tiny)
