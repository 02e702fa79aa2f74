"""Warm-started block iteration: the strongest directions of many equal-shaped weights, from those of last time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.spectral.by_gram import FIRST_DEGREE, GRAM_UP_TO, by_gram
from lab.spectral.by_krylov import FIRST_DEPTH, by_krylov
from lab.spectral.spectrum import fix_signs


@dataclass(frozen=True)
class Iterated:
    """The strongest directions of b weights of one shape, as far as they were iterated."""

    U: Tensor  # (b, out, k), orthonormal columns
    S: Tensor  # (b, q), descending
    V: Tensor  # (b, in, q), orthonormal columns
    residual: Tensor  # (b,) largest ‖Wᵀu − σv‖/σ over the first k; 0 where these values are 0
    effort: list[int]  # what each should start with next time
    products: int  # multiplications of a weight or its Gram matrix with a block of q columns, over all b


def first_effort(width: int, device: torch.device) -> int:
    """The degree or depth with which weights of a width start on a device."""
    return FIRST_DEGREE if _is_narrow(width, device) else FIRST_DEPTH


def _is_narrow(width: int, device: torch.device) -> bool:
    return width <= GRAM_UP_TO.get(device.type, GRAM_UP_TO["cpu"])


def iterate(
    weights: Sequence[Tensor], V: Tensor, edges: Sequence[float], k: int, effort: Sequence[int], tolerance: float
) -> Iterated:
    """Turn guesses V (b, in, q), which span, into the strongest directions of b float32 weights (out, in), out ≥ in.

    Narrow weights go by filters of their Gram matrices, which start at `edges`, σ_q² of last time or the mean of all.
    Wide ones, and those whose values span orders of magnitude, go by block Krylov spaces. Either starts again for the
    weights whose `error_angle` is beyond the `tolerance`, in radians. Plain subspace iteration, one application of WᵀW
    at a time, is far behind where the spectrum is flat, as Muon leaves it.
    """
    if not _is_narrow(V.shape[1], V.device):
        each = zip(weights, V, edges, effort, strict=True)
        alone = [by_krylov(W, guess, edge, k, depth, tolerance) for W, guess, edge, depth in each]
        U, S, right = (torch.stack([getattr(one, part) for one in alone]) for part in ("U", "S", "V"))
        residual = S.new_tensor([one.residual for one in alone])
        following, products = [one.depth for one in alone], sum(one.products for one in alone)
    else:
        narrow = by_gram(weights, V, edges, k, effort, tolerance)
        S, right, residual = narrow.values.clamp_min(0).sqrt(), narrow.V, narrow.residual
        U = torch.stack([W @ block for W, block in zip(weights, right[..., :k], strict=True)]) / S[:, None, :k]
        following, products = narrow.degrees, narrow.products
        for i, resolved in enumerate(narrow.resolved):
            if not resolved:
                one = by_krylov(weights[i], V[i], edges[i], k, FIRST_DEPTH, tolerance)
                U[i], S[i], right[i], residual[i], following[i] = one.U, one.S, one.V, one.residual, FIRST_DEGREE
                products += one.products
    U, right[..., :k] = fix_signs(U, right[..., :k])
    return Iterated(U, S, right, residual, following, products)
