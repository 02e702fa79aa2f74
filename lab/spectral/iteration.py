"""Warm-started block iteration: the strongest directions of many equal-shaped weights, from those of last time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.spectral.spectrum import fix_signs

MOST_CYCLES = 4  # restarts; the residual says what was reached
# A new block this far from orthogonal to the old ones is mostly rounding: the old ones hold all there is.
LEAST_ORTHOGONAL = 1e-5


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
    pass of subspace iteration. Where the spectrum is flat, as Muon leaves it, depth 5 reaches with 12 products of
    2·m·n·q FLOPs what 8 plain passes, 24 products, do not: singular values to 1e-5 (measured on a NanoChat's weights).
    `depth` is cut where the space would outgrow the smaller side.
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
    q, space = V.shape[-1], V
    images = [times(weights, V)]
    for _ in range(depth):
        # Balanced by column: a block may span many orders of magnitude.
        new = _unit_columns(times_transposed(weights, images[-1]))
        new = torch.linalg.qr(new - space @ (space.mT @ new)).Q
        inside = space.mT @ new
        if float(inside.abs().amax()) > LEAST_ORTHOGONAL:
            new = torch.linalg.qr(new - space @ inside).Q
        space = torch.cat([space, new], -1)
        images.append(times(weights, new))
    image = torch.cat(images, -1)
    if depth:
        wide = image.double()
        best = torch.linalg.eigh(wide.mT @ wide).eigenvectors[..., -q:].flip(-1).to(V.dtype)
        space, image = space @ best, image @ best
    U, triangle = torch.linalg.qr(image)
    left, S, right = torch.linalg.svd(triangle)
    U, V = U @ left, space @ right.mT
    lengths = torch.linalg.vector_norm((times_transposed(weights, U) - V * S[..., None, :])[..., :k], dim=-2)
    # Directions of value 0 are arbitrary; asking them to converge would never end.
    floor = S[..., :1] * max(weights[0].shape) * torch.finfo(S.dtype).eps
    meant = S[..., :k] > floor
    residual = torch.where(meant, lengths / S[..., :k].clamp_min(torch.finfo(S.dtype).tiny), 0).amax(-1)
    return U, S, V, residual


def _unit_columns(block: Tensor) -> Tensor:
    return block / torch.linalg.vector_norm(block, dim=-2, keepdim=True).clamp_min(torch.finfo(block.dtype).tiny)
