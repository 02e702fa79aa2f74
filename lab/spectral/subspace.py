"""Principal angles and overlaps of subspaces, and how fast an update turns them. In radians, never by arccos."""

from collections.abc import Sequence

import torch
from torch import Tensor


def principal_angles(before: Tensor, after: Tensor) -> Tensor:
    """The k principal angles in radians, ascending, between the column spaces of two orthonormal (d, k) matrices.

    atan2 of sine and cosine (Björck and Golub 1973): cosines are the singular values of M = QaᵀQb, sines those of the
    residual Qb − QaM. arccos alone floors at √eps, 5e-4 rad in float32; this is accurate to 1e-6.
    """
    M, residual = split(before, after)
    cosines = torch.linalg.svdvals(M)
    sines = torch.linalg.svdvals(residual).flip(-1)  # the smallest sine belongs to the largest cosine
    return torch.atan2(sines, cosines)


def subspace_angle(before: Tensor, after: Tensor) -> float:
    """The largest principal angle, in radians, between two orthonormal (d, k) bases."""
    return float(principal_angles(before, after)[-1])


def overlap(before: Tensor, after: Tensor) -> float:
    """‖QaᵀQb‖_F²/k, the mean squared cosine, 0 to 1; unrelated (d, k) bases give k/d."""
    return float((before.mT @ after).double().square().sum() / before.shape[-1])


def overlap_curve(before: Tensor, after: Tensor) -> Tensor:
    """The overlap of the first j columns with the first j columns, for j = 1 … k: (…, d, k) twice -> (…, k) float64."""
    return leading_overlaps(before.mT @ after)


def leading_overlaps(M: Tensor) -> Tensor:
    """The overlap curve from M = QaᵀQb (…, k, k)."""
    return leading_sums(M.double().square()) / torch.arange(1, M.shape[-1] + 1, device=M.device)


def leading_sums(blocks: Tensor) -> Tensor:
    """Σ of the leading j x j block of (…, k, k), for j = 1 … k, as (…, k)."""
    return blocks.cumsum(-2).cumsum(-1).diagonal(dim1=-2, dim2=-1)


def angle_curve(before: Tensor, after: Tensor, counts: Sequence[int]) -> Tensor:
    """The largest principal angle between the first j columns and the first j columns, j in counts, radians.

    (…, d, k) twice -> (…, len(counts)) float64.
    """
    M, residual = split(before, after)
    return leading_angles(M.double(), gram(residual), counts)


def leading_angles(M: Tensor, squares: Tensor, counts: Sequence[int]) -> Tensor:
    """The angle curve from M = QaᵀQb (…, k, k) and the Gram of R = Qb − QaM (…, k, k), both float64.

    The residual of the leading j columns is R_j + Qa[:, j:] M[j:, :j], two orthogonal parts, so that its Gram is a sum
    of squares and nothing cancels. Where all sines are small the largest sine is decomposed, elsewhere the smallest
    cosine; the other follows.
    """
    angles = []
    for j in counts:
        kept, cross = M[..., :j, :j], M[..., j:, :j]
        sines, cosines = squares[..., :j, :j] + cross.mT @ cross, kept.mT @ kept
        small = sines.diagonal(dim1=-2, dim2=-1).sum(-1) < 0.5  # Σ sin²
        block = torch.where(small[..., None, None], sines, cosines)
        values = block[..., 0] if j == 1 else torch.linalg.eigvalsh(block)
        square = torch.where(small, values[..., -1], values[..., 0]).clamp(0, 1)
        this, other = square.sqrt(), (1 - square).sqrt()
        angles.append(torch.where(small, torch.atan2(this, other), torch.atan2(other, this)))
    return torch.stack(angles, -1)


def split(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """M = QaᵀQb (…, k, k) and the residual R = Qb − QaM (…, d, k) of orthonormal (…, d, k) bases."""
    M = before.mT @ after
    residual = after - before @ M
    # Once more, since rounding leaves a part of size eps inside the span.
    return M, residual - before @ (before.mT @ residual)


def gram(matrix: Tensor) -> Tensor:
    """QᵀQ of (…, d, k), as (…, k, k) float64."""
    tall = matrix.double()
    return tall.mT @ tall


def rotation(across: Tensor, within: Tensor, S: Tensor) -> Tensor:
    """Rate at which one step turns k directions, to first order: ‖(I − UUᵀ) ΔW V S⁻¹‖₂, (…) radians per step, float64.

    `across` is the Gram (…, k, k) of ΔWV, `within` is UᵀΔWV (…, k, k), S (…, k) positive; for the right side pass the
    Gram of ΔWᵀU and the transpose of `within`. Exact to first order where what lies beyond k is small against σ_k
    (Stewart and Sun, Matrix Perturbation Theory, 1990); without a gap the true rotation is faster.
    """
    scale = 1 / S.double()
    outside = across.double() - within.double().mT @ within.double()
    outside = outside * scale[..., :, None] * scale[..., None, :]
    return torch.linalg.eigvalsh(outside)[..., -1].clamp_min(0).sqrt()


def predicted_rotation(update: Tensor, U: Tensor, S: Tensor, V: Tensor) -> tuple[float, float]:
    """Rates at which one applied update (out, in) turns the k left and the k right directions: radians per step.

    U (out, k), S (k,), V (in, k). Raises ValueError where a singular value is 0: that direction has no rate.
    """
    if float(S[-1]) <= 0:
        raise ValueError(f"direction {len(S)} has singular value 0; ask for fewer directions.")
    UX, XV = U.mT @ update, update @ V
    within = UX @ V
    return float(rotation(gram(XV), within, S)), float(rotation(gram(UX.mT), within.mT, S))
