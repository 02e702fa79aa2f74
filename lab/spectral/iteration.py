"""Warm-started block iteration: the strongest directions of many equal-shaped weights, from those of last time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.spectral.spectrum import fix_signs

MOST_CYCLES = 4  # restarts; the residual says what was reached
GRAM_UP_TO = 512  # width below which a Gram matrix costs less than the products it saves
# A new block this far from orthogonal to the old ones is mostly rounding: the old ones hold all there is.
LEAST_ORTHOGONAL = 1e-5
LEAST_SPREAD = 1e-2  # of the squared values over a block, for which float32 is enough
FIRST_FILTER = 3  # degree, before directions are good enough to tell where the wanted ones end
KRYLOV_FILTERS = (6, 8)  # within the space, where a step costs next to nothing
MOST_GROWTH = 1e4  # of the strongest direction over the weakest in one filter; more, and float32 loses the weakest

Found = tuple[Tensor, Tensor, Tensor, Tensor]  # U, S, V and the residual of each weight


@dataclass(frozen=True)
class Iterated:
    """The q strongest directions of b weights of one shape, as far as they were iterated."""

    U: Tensor  # (b, out, q), orthonormal columns
    S: Tensor  # (b, q), descending
    V: Tensor  # (b, in, q), orthonormal columns
    residual: Tensor  # (b,) largest ‖Wᵀu − σv‖/σ over the first k; 0 where these values are 0
    first_residual: Tensor  # (b,) the same after one cycle, by which the next depth is chosen
    products: int  # multiplications of a weight or its Gram matrix with a block of q columns, over all b


def iterate(weights: Sequence[Tensor], V: Tensor, k: int, depth: int, tolerance: float) -> Iterated:
    """Turn orthonormal guesses V (b, in, q) into the q strongest directions of b float32 weights (out, in), out ≥ in.

    Where the Gram matrix WᵀW is small: Chebyshev filters of it (Zhou, Saad, Tiago and Chelikowsky, J. Comput. Phys.
    219, 2006). Else, and where values span orders of magnitude: Rayleigh–Ritz on the block Krylov space [V, (WᵀW)V, …,
    (WᵀW)^depth V] (Golub, Luk and Overton 1981; Musco and Musco, NeurIPS 2015). Either starts again for the weights
    whose residual is above `tolerance`. Plain subspace iteration, one application of WᵀW at a time, is far behind where
    the spectrum is flat, as Muon leaves it. `depth` is the effort of the first cycle.
    """
    narrow = V.shape[1] <= GRAM_UP_TO
    grams = torch.stack([W.mT @ W for W in weights]) if narrow else None
    U, S, V, residual, products = _cycle(weights, grams, V, k, depth)
    first = residual.clone()
    for _ in range(MOST_CYCLES - 1):
        active = torch.nonzero(residual > tolerance).flatten()
        if len(active) == 0:
            break
        chosen = [weights[i] for i in active.tolist()]
        some = None if grams is None else grams[active]
        U[active], S[active], V[active], residual[active], spent = _cycle(chosen, some, V[active], k, depth)
        products += spent
    U, V = fix_signs(U, V)
    return Iterated(U, S, V, residual, first, products)


def times(weights: Sequence[Tensor], V: Tensor) -> Tensor:
    """W V for each weight (out, in) and its block (b, in, q): (b, out, q). The weights are never copied together."""
    return torch.stack([W @ block for W, block in zip(weights, V, strict=True)])


def times_transposed(weights: Sequence[Tensor], U: Tensor) -> Tensor:
    """WᵀU for each weight and its block (b, out, q): (b, in, q), reading each weight row by row."""
    return torch.stack([block.mT @ W for W, block in zip(weights, U, strict=True)]).mT


def _cycle(
    weights: Sequence[Tensor], grams: Tensor | None, V: Tensor, k: int, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    found = None if grams is None else strongest(grams, V, (FIRST_FILTER, 2 * depth))
    if found is not None:
        values, V, image = found
        S = values.sqrt()
        lengths = torch.linalg.vector_norm(image[..., :k] - V[..., :k] * values[:, None, :k], dim=-2)
        residual = (lengths / values[:, :k]).amax(-1)
        return times(weights, V) / S[:, None, :], S, V, residual, (FIRST_FILTER + 2 * depth + 2) * len(weights)
    depth = max(0, min(depth, V.shape[1] // V.shape[2] - 1))
    return *_krylov(weights, V, k, depth), (2 * depth + 2) * len(weights)


def strongest(grams: Tensor, V: Tensor, degrees: Sequence[int]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The strongest directions of Gram matrices A (b, n, n) from guesses V (b, n, q), by a filter per degree.

    -> values (b, q) descending, directions (b, n, q) and A times these; None where the values of a block turn out to
    span so much that float32 would lose the weaker ones.
    """
    image = grams @ V
    for degree in degrees:
        quotients = (V * image).sum(-2)
        edge, top = quotients.amin(-1), quotients.amax(-1)
        if not bool((edge > LEAST_SPREAD * top).all()):
            return None
        # d steps favour the strongest over the edge by cosh(d·acosh(growth)).
        growth = max(float((2 * top / edge - 1).amax()), 1 + 1e-6)
        steps = max(1, min(degree, int(math.acosh(MOST_GROWTH) / math.acosh(growth))))
        scale = (2 / edge)[:, None, None]
        before, now = V, image * scale - V
        for _ in range(steps - 1):
            before, now = now, 2 * ((grams @ now) * scale - now) - before
        V = torch.linalg.qr(now).Q
        image = grams @ V
    values, turn = torch.linalg.eigh(V.mT @ image)
    values, turn = values.flip(-1), turn.flip(-1)
    if not bool((values[:, -1] > LEAST_SPREAD * values[:, 0]).all()):
        return None
    return values, V @ turn, image @ turn


def _krylov(weights: Sequence[Tensor], V: Tensor, k: int, depth: int) -> Found:
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
    first = torch.eye(image.shape[-1], q, dtype=V.dtype, device=V.device).expand(b, -1, -1)
    found = strongest(image.mT @ image, first, KRYLOV_FILTERS if depth else ())
    if found is not None:
        S = found[0].sqrt()
        U, V = (image @ found[1]) / S[..., None, :], space @ found[1]
    else:
        U, S, V = _graded(image, space, q)
    residual = times_transposed(weights, U[..., :k]) - V[..., :k] * S[..., None, :k]
    # Directions of value 0 are arbitrary; asking them to converge would never end.
    floor = S[..., :1] * max(weights[0].shape) * torch.finfo(S.dtype).eps
    lengths = torch.linalg.vector_norm(residual, dim=-2) / S[..., :k].clamp_min(torch.finfo(S.dtype).tiny)
    return U, S, V, torch.where(S[..., :k] > floor, lengths, 0).amax(-1)


def _graded(image: Tensor, space: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V where values span orders of magnitude or vanish: by float64 and orthogonal steps alone."""
    wide = image.double()
    best = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -q:].flip(-1).to(image.dtype)
    U, triangle = torch.linalg.qr(image @ best)
    left, S, right = torch.linalg.svd(triangle)
    return U @ left, S, space @ best @ right.mT


def _unit_columns(block: Tensor) -> Tensor:
    return block / torch.linalg.vector_norm(block, dim=-2, keepdim=True).clamp_min(torch.finfo(block.dtype).tiny)
