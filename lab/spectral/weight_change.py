"""Measures of what a run learned, layer by layer, from the factors of its weight change ΔW = L R.

L is (out, p) and R is (p, in), with the scaling s inside: L = s B, R = A; with an offset L = [s B, −s B₀], R = [A; A₀].
Nothing here ever forms ΔW or its dense SVD; small matrices are float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lab.spectral.chance import Side, chance, z_score
from lab.spectral.decomposition import decompose, energy_of
from lab.spectral.spectrum import effective_rank, stable_rank

RESIDUAL = 1e-5  # of σ₁²: how exactly a singular vector of W + ΔW solves its equation before it is compared


@dataclass(frozen=True)
class ThinSvd:
    """The thin SVD of a weight change, ΔW = U diag(S) Vh, float64."""

    U: Tensor  # (out, p), orthonormal columns
    S: Tensor  # (p,), falling
    Vh: Tensor  # (p, in), orthonormal rows

    @property
    def energy(self) -> float:
        """‖ΔW‖_F²."""
        return float((self.S**2).sum())


def thin_svd(L: Tensor, R: Tensor) -> ThinSvd:
    """The exact thin SVD of L R: QR of L and of Rᵀ, SVD of the small product of their triangles.

    O((out + in) p²) instead of O(out · in · min). p may exceed a side; then as many directions come back as there are.
    """
    left, upper = torch.linalg.qr(L.double())
    right, lower = torch.linalg.qr(R.double().T)
    P, S, Qh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return ThinSvd(left @ P, S, Qh @ right.T)


@dataclass(frozen=True)
class EnergyShare:
    """The share of ‖ΔW‖_F² inside a subspace of the base, beside what a change of random direction would have there."""

    share: float  # 0 to 1
    chance: float  # its expectation over random directions
    z: float | None  # standard deviations above chance; None where chance has no spread


def energy_shares(change: ThinSvd, left: Tensor, right: Tensor) -> dict[Side, EnergyShare]:
    """The energy of ΔW in a subspace of the base: on its left, on its right, and on both (`core`), against chance.

    ‖U_kᵀΔW‖², ‖ΔW V_k‖² and ‖U_kᵀΔW V_k‖² over ‖ΔW‖_F²; `left` (out, k) and `right` (in, k) are orthonormal. Hu et al.
    2021 (arXiv:2106.09685) §7 compare the frames alone; here each direction counts by its σ².
    """
    inside_left, inside_right = left.double().T @ change.U, change.Vh @ right.double()  # (k, p), (p, k)
    parts: dict[Side, Tensor] = {
        "left": inside_left * change.S,
        "right": change.S[:, None] * inside_right,
        "core": (inside_left * change.S) @ inside_right,
    }
    k, shape = left.shape[1], (left.shape[0], right.shape[0])
    concentration = float((change.S**4).sum()) / change.energy**2
    shares: dict[Side, EnergyShare] = {}
    for side, part in parts.items():
        share = float((part**2).sum()) / change.energy
        shares[side] = EnergyShare(share, chance(side, k, shape), z_score(side, share, k, shape, concentration))
    return shares


def intruder_cosines(weight: Tensor, change: ThinSvd, base_left: Tensor, k: int) -> Tensor:
    """The greatest |cosine| of each of the k leading left singular vectors of W + ΔW with any of W's own, (k,).

    `base_left` (out, min(out, in)): all left singular vectors of W, by falling singular value. An intruder dimension is
    one below ε: new, and among the strongest (Shuttleworth et al. 2024, arXiv:2410.21228; they use k = 10, ε = 0.5).
    """
    own = base_left.float()
    start = torch.cat([own[:, :k], change.U[:, :k].float()], dim=1)
    leading = leading_left(weight.float(), (change.U * change.S).float(), change.Vh.float(), start, k)
    return (own.T @ leading).abs().amax(0)


def leading_left(weight: Tensor, L: Tensor, R: Tensor, start: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors (out, k) of W + L R, by block Lanczos from the columns of `start` (out, b).

    Golub and Kahan 1965, Musco and Musco 2015: Rayleigh-Ritz on span{X, MMᵀX, (MMᵀ)²X, ...}, enlarged until every
    vector solves MMᵀu = σ²u to RESIDUAL · σ₁². The basis ends at the whole space, so it always comes to an end.
    """
    k = min(k, *weight.shape)

    def times(x: Tensor) -> Tensor:
        return weight @ x + L @ (R @ x)

    def transposed(y: Tensor) -> Tensor:
        return weight.T @ y + R.T @ (L.T @ y)

    basis = torch.linalg.qr(start).Q  # (out, b), then grows by b columns a pass
    image = transposed(basis)  # (in, columns of basis)
    width = basis.shape[1]
    while True:
        squares, mix = torch.linalg.eigh((image.T @ image).double())
        squares, mix = squares.flip(0)[:k].float(), mix.flip(1)[:, :k].float()
        ritz = basis @ mix
        residual = torch.linalg.vector_norm(times(image @ mix) - ritz * squares, dim=0)
        if bool((residual <= RESIDUAL * squares[0]).all()) or basis.shape[1] == len(basis):
            return ritz
        block = times(image[:, -width:])
        for _ in range(2):  # once leaves the new block only roughly orthogonal (Giraud et al. 2005)
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        width = min(width, len(basis) - basis.shape[1])
        block = block[:, :width]
        basis, image = torch.cat([basis, block], dim=1), torch.cat([image, transposed(block)], dim=1)


@dataclass(frozen=True)
class FirstStep:
    """The quality of a first step as a step down the gradient; cosines of matrices under the trace inner product."""

    cosine: float  # of ΔW with −G
    cosine_best: float  # of ΔW with the best rank-r step, −G truncated to its r leading triples
    ceiling: float  # √(Σ_{i≤r} σᵢ² / Σ σᵢ²): the greatest cosine with −G that a change of rank r can have


def first_step(L: Tensor, R: Tensor, gradient: Tensor, rank: int) -> FirstStep | None:
    """The first step's change L R (after the first optimizer step, less before it) against G (out, in) at step 0.

    The ceiling is Eckart and Young's; LoRA-GA and LoRA-One argue by it (arXiv:2407.05000, 2502.01235). A step of more
    than rank r (s(B₁A₁ − B₀A₀) reaches 2r) may exceed it. None where the step or the gradient is zero.
    """
    change, energy = thin_svd(L, R), energy_of(gradient)
    if change.energy == 0 or energy == 0:
        return None
    best = decompose(gradient.float(), min(rank, *gradient.shape), "exact", Generator())
    step = math.sqrt(change.energy)
    down = -float(((change.U * change.S) * (gradient.double() @ change.Vh.T)).sum())
    parts = (best.U.double().T @ change.U) * change.S @ (change.Vh @ best.Vh.double().T)  # (r, r): uᵢᵀ ΔW vⱼ
    truncated = -float(parts.diagonal() @ best.S.double())
    return FirstStep(
        cosine=down / (step * math.sqrt(energy)),
        cosine_best=truncated / (step * float(torch.linalg.vector_norm(best.S.double()))),
        ceiling=math.sqrt(best.captured_energy),
    )


def change_measures(
    L: Tensor,
    R: Tensor,
    weight: Tensor,
    base_left: Tensor,
    base_right: Tensor,
    *,
    rank: int,
    k: int,
    epsilon: float,
) -> dict[str, float | None]:
    """The measures of one layer, by name; None where undefined, as most are for a change or a weight of zero.

    `weight` (out, in) is the base's; `base_left` (out, m) and `base_right` (in, m), m ≥ k, are its leading singular
    vectors by falling singular value; intruders are known only where these are all it has. `rank` is what the layer was
    given; `k` the size of the base's leading subspace and the number of directions tested for intruders; `epsilon` an
    intruder's greatest cosine.
    """
    change = thin_svd(L, R)
    size, base = math.sqrt(change.energy), math.sqrt(energy_of(weight))
    effective = effective_rank(change.S)
    measures: dict[str, float | None] = {
        "effective_rank": effective,
        "stable_rank": stable_rank(change.S, change.energy),
        "utilisation": None if effective is None else effective / rank,  # share of the rank given that is in use
        "delta_norm": size,  # ‖ΔW‖_F
        "relative_norm": size / base if base else None,  # ‖ΔW‖_F / ‖W‖_F
        "intruders": None,
        "intruder_min_cosine": None,
    }
    measures |= {f"energy_{side}{part}": None for side in ("left", "right", "core") for part in ("", "_chance", "_z")}
    if size == 0 or base == 0:
        return measures
    for side, part in energy_shares(change, base_left[:, :k], base_right[:, :k]).items():
        measures |= {f"energy_{side}": part.share, f"energy_{side}_chance": part.chance, f"energy_{side}_z": part.z}
    if base_left.shape[1] < min(weight.shape):
        return measures
    cosines = intruder_cosines(weight, change, base_left, k)
    measures["intruders"] = float((cosines < epsilon).sum())
    measures["intruder_min_cosine"] = float(cosines.min())
    return measures
