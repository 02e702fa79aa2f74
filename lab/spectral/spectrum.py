"""Spectrum of a weight and its measures, each of which is undefined (None), not NaN, where it must be."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.spectral.scale import Scale, normal, scale_of

ZERO, DEFICIENT, NON_FINITE = "zero_matrix", "rank_deficient", "non_finite"


@dataclass(frozen=True)
class Spectrum:
    """W ≈ U diag(S) Vᵀ, strongest direction first, each pair's sign fixed by its largest left entry being positive."""

    U: Tensor  # (out, k), orthonormal columns
    S: Tensor  # (k,), descending, >= 0
    V: Tensor  # (in, k), orthonormal columns
    energy: float  # ‖W‖_F², of the whole matrix, so that the tail beyond k is known
    shape: tuple[int, int]  # (out, in)
    rank: int  # directions with σ > max(shape) · eps · σ₁; the others are arbitrary

    @property
    def reason(self) -> str | None:
        """The reason why some directions mean nothing: `zero_matrix`, `rank_deficient`, or None."""
        if self.rank == 0:
            return ZERO
        return DEFICIENT if self.rank < len(self.S) else None

    @property
    def whole(self) -> bool:
        """True where S holds every singular value."""
        return len(self.S) == min(self.shape)


def spectrum_of(
    matrix: Tensor, k: int | None = None, dtype: torch.dtype = torch.float32, signs: bool = True
) -> Spectrum:
    """The k strongest directions (all, without k) of a matrix (out, in), by a full SVD in `dtype`.

    Without `signs` each pair keeps the sign that the library gave it, which differs between libraries and machines.

    Any floating dtype goes in. Raises ValueError for a k beyond the smaller side and for entries that are not finite.
    """
    out_features, in_features = matrix.shape
    if k is not None and not 1 <= k <= min(matrix.shape):
        raise ValueError(f"k={k} directions of a {out_features}x{in_features} matrix; it has {min(matrix.shape)}.")
    scale = scale_of(matrix.detach())
    if not math.isfinite(scale.total):
        raise ValueError("the matrix has entries that are not finite; it has no spectrum.")
    W = scale.down(matrix.detach()).to(dtype)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, S, V = U[:, :k], S[:k], Vh[:k].mT
    if signs:
        U, V = fix_signs(U, V)
    shape = (out_features, in_features)
    total = Scale(scale.exponent, scale_of(W).energy).energy
    return Spectrum(U, scale.up(S), V, total, shape, numerical_rank(S, shape))


def fix_signs(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Flip pairs of columns so that the largest entry of each column of U (…, out, k) is positive."""
    sign = torch.where(U.amax(-2, keepdim=True) < -U.amin(-2, keepdim=True), -1.0, 1.0).to(U.dtype)
    return U * sign, V * sign


def numerical_rank(S: Tensor, shape: tuple[int, int]) -> int:
    """Number of singular values above rounding: σ > max(shape) · eps · σ₁, the rule of LAPACK and NumPy."""
    if len(S) == 0 or float(S[0]) == 0.0:
        return 0
    S = normal(S)
    eps = torch.finfo(S.dtype).eps if S.dtype != torch.float64 else torch.finfo(torch.float32).eps
    return int((max(shape) * eps * S[0] < S).sum())


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values (min(out, in),), descending, float64, from the Gram matrix of the smaller side.

    Half the cost of an SVD's values. A float32 Gram would lose everything below 1e-3 σ₁ (relative error
    eps · (σ₁/σᵢ)²); in float64 the error is below float32 rounding down to 1e-4 σ₁.
    """
    scale = scale_of(matrix.detach())
    W = scale.down(matrix.detach()).double()
    gram = W @ W.mT if W.shape[0] <= W.shape[1] else W.mT @ W
    return scale.up(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1))


def stable_rank(S: Tensor, energy: float) -> float | None:
    """‖W‖_F²/σ₁², from 1 to min(out, in) (Rudelson and Vershynin 2007); None for a zero matrix."""
    top = float(S[0])
    return energy / (top * top) if top > 0 else None


def entropy_rank(S: Tensor) -> float | None:
    """exp(−Σ p ln p) with p = σ²/Σσ², from 1 to min(out, in), of a whole spectrum (Roy and Vetterli 2007, of σ²)."""
    p = _shares(S)
    return None if p is None else float(torch.exp(torch.special.entr(p).sum()))


def effective_rank(S: Tensor) -> float | None:
    """exp(−Σ p ln p) with p = σ/Σσ, from 1 to the number of directions (Roy and Vetterli 2007); None for a zero matrix.

    On singular values, as the paper has it; `entropy_rank` is the same on their squares.
    """
    total = S.double().sum()
    return float(torch.exp(torch.special.entr(S.double() / total).sum())) if total > 0 else None


def participation_ratio(S: Tensor) -> float | None:
    """(Σσ²)²/Σσ⁴, from 1 to min(out, in), of a whole spectrum; 1 over it is a `concentration`."""
    p = _shares(S)
    return None if p is None else float(1 / p.square().sum())


def _shares(S: Tensor) -> Tensor | None:
    squares = normal(S.double()).square()
    total = squares.sum()
    return squares / total if float(total) > 0 else None


def tail_error(S: Tensor, energy: float) -> Tensor:
    """‖W − W_r‖_F/‖W‖_F after keeping r = 1 … len(S) directions, as (len(S),) float64, 0 to 1; zeros for a zero matrix.

    √(1 − Σ_{i≤r} σᵢ²/‖W‖_F²) (Eckart–Young): no reconstruction is needed. Singular values in float32 leave a floor
    near 3e-4.
    """
    if energy == 0:
        return torch.zeros(len(S), dtype=torch.float64)
    return (1 - S.double().square().cumsum(0) / energy).clamp_min(0).sqrt()


def spectral_gap(S: Tensor, k: int) -> float | None:
    """(σ_k − σ_{k+1})/σ₁, from 0 to 1; None for a zero matrix or where σ_{k+1} is not among S (but is 0 past the end).

    Davis–Kahan: a change ΔW turns the first k directions by at most asin(‖ΔW‖₂/(σ_k − σ_{k+1})), so that without a gap
    their largest angle says how k was chosen, not how the weight moved.
    """
    if float(S[0]) == 0.0 or k >= len(S):
        return None
    return float((S[k - 1] - S[k]) / S[0])


def snap_to_gap(S: Tensor, low: int, high: int, least: float) -> int | None:
    """The k in [low, high] with the widest gap, or None where even that is below `least` (of σ₁)."""
    gaps = {k: gap for k in range(low, min(high, len(S) - 1) + 1) if (gap := spectral_gap(S, k)) is not None}
    best = max(gaps, key=lambda k: gaps[k], default=None)
    return best if best is not None and gaps[best] >= least else None
