"""Outside of a low-rank pair: the share of a gradient's energy that no first-order move of the pair can follow."""

import torch
from torch import Tensor

from lab.spectral.scale import scale_of


def outside(gradient: Tensor, B: Tensor, A: Tensor) -> float | None:
    """‖(I − P_B) G (I − P_A)‖²/‖G‖² of G (out, in), with P_B on B's columns (out, r) and P_A on A's rows (r, in).

    A pair moves the product by ΔB A + B ΔA, which holds everything of G but this. 0 to 1; None for a gradient that is
    zero or not finite. Chance gives (1 − r/out)(1 − r/in), or 1 − r/in while B is 0. 4·out·in·r FLOPs.
    """
    scale = scale_of(gradient.float())
    if not scale.sound:
        return None
    rest = scale.down(gradient.float())
    P, Q = _basis(B.float()), _basis(A.float().mT)
    rest = rest - P @ (P.mT @ rest)
    rest = rest - (rest @ Q) @ Q.mT
    return float(torch.linalg.vector_norm(rest).double().square()) / scale.total


def _basis(columns: Tensor) -> Tensor:
    """An orthonormal basis (d, at most r) of what the columns (d, r) span."""
    U, S, _ = torch.linalg.svd(columns, full_matrices=False)
    held = max(columns.shape) * torch.finfo(torch.float32).eps * S.max() < S
    return U[:, held]
