"""Truncated singular value decompositions M ≈ U diag(S) Vh: randomised with a stopping rule, or exact.

Defined for every finite matrix: on a zero or rank-deficient one the frames are orthonormal all the same and the
missing singular values are 0, never NaN.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from lab.process import heartbeat

Algorithm = Literal["randomised", "exact"]
ALGORITHMS = ("randomised", "exact")

OVERSAMPLING = 10  # columns beyond the rank asked for; Halko et al. (arXiv:0909.4061) advise 5 to 10
TOLERANCE = 1e-3  # a pass that raises the captured energy by less than this share of it is the last
MAX_PASSES = 6  # a spectrum still gaining after these is too flat to sketch, and is decomposed exactly
SKETCH_SHARE = 0.25  # beyond this share of the smaller side a sketch is no cheaper than the exact way
CHUNK = 2048  # rows or columns turned to float64 at a time, so that a large weight is never copied whole


@dataclass(frozen=True)
class Decomposition:
    """Some singular triples of a matrix, and the way they were had."""

    U: Tensor  # (out, k) float32, orthonormal columns
    S: Tensor  # (k,) float32, descending
    Vh: Tensor  # (k, in) float32, orthonormal rows
    energy: float  # ‖M‖_F² of the whole matrix
    passes: int  # power iterations made; 0 where the exact way was taken at once
    exact: bool

    @property
    def captured_energy(self) -> float:
        """Share of ‖M‖_F² in these triples, 0 to 1; 0 for a zero matrix."""
        return float((self.S.double() ** 2).sum()) / self.energy if self.energy else 0.0

    @property
    def info(self) -> dict[str, float]:
        """The scalars for the record."""
        return {
            "captured_energy": self.captured_energy,
            "svd_passes": float(self.passes),
            "svd_exact": float(self.exact),
        }

    def first(self, rank: int) -> "Decomposition":
        """The `rank` leading triples."""
        return replace(self, U=self.U[:, :rank], S=self.S[:rank], Vh=self.Vh[:rank])


def energy_of(matrix: Tensor) -> float:
    """‖M‖_F², summed in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def decompose(matrix: Tensor, rank: int, algorithm: Algorithm, generator: Generator) -> Decomposition:
    """The leading `rank` singular triples of a finite float32 matrix (out, in).

    `randomised` stops when its last pass raised the captured energy by less than 0.1 % relative, and goes exact
    after six passes, or at once where the rank is over a quarter of the smaller side.
    """
    heartbeat.beat()
    passes = 0
    if algorithm == "randomised" and rank + OVERSAMPLING <= SKETCH_SHARE * min(matrix.shape):
        sketched = _randomised(matrix, rank, generator)
        if sketched is not None:
            return sketched
        passes = MAX_PASSES
    return replace(triples(matrix, exact_basis(matrix), torch.arange(rank)), passes=passes)


def _randomised(matrix: Tensor, rank: int, generator: Generator) -> Decomposition | None:
    """Block power iteration from a Gaussian sketch; None where six passes did not settle the captured energy."""
    shape = (matrix.shape[1], rank + OVERSAMPLING)
    sketch = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(matrix.device)
    left = torch.linalg.qr(matrix @ sketch).Q
    right = matrix.T @ left
    captured = _energy_in(right, rank)
    for passes in range(1, MAX_PASSES + 1):
        # both sides are orthonormalised: raw powers would lose every direction below 1e-7 of the first
        left = torch.linalg.qr(matrix @ torch.linalg.qr(right).Q).Q
        right = matrix.T @ left
        before, captured = captured, _energy_in(right, rank)
        if captured - before <= TOLERANCE * captured:
            frame, small = torch.linalg.qr(right)  # Mᵀ left = frame · small, so left ᵀM = smallᵀ frameᵀ
            P, S, Qh = torch.linalg.svd(small.T)
            return Decomposition(left @ P, S, Qh @ frame.T, energy_of(matrix), passes, exact=False).first(rank)
    return None


def _energy_in(right: Tensor, rank: int) -> float:
    """Σ of the `rank` greatest σ² of a thin matrix, in float64, where squares of small gradients do not underflow."""
    thin = right.double()
    return float(torch.linalg.eigvalsh(thin.T @ thin)[-rank:].sum())


def exact_basis(matrix: Tensor) -> Tensor:
    """All singular directions of the smaller side, as columns (n, n) float32, by descending singular value.

    Eigenvectors of the smaller Gram matrix in float64: squaring costs half the digits, which leaves about the eight
    that float32 had, and takes a fraction of the time of a full SVD.
    """
    heartbeat.beat()
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = torch.zeros(small.shape[0], small.shape[0], dtype=torch.float64, device=matrix.device)
    for columns in small.split(CHUNK, dim=1):
        part = columns.double()
        gram.addmm_(part, part.T)
    return torch.linalg.eigh(gram).eigenvectors.flip(1).to(torch.float32).contiguous()


def triples(matrix: Tensor, basis: Tensor, indices: Tensor) -> Decomposition:
    """The singular triples at `indices` (0 is the greatest; ascending) given the basis of the smaller side.

    The other side is M's image of the basis, orthonormalised in float64: for a vanishing singular value the image is
    noise, and QR still returns a unit vector orthogonal to the rest.
    """
    flip = matrix.shape[0] > matrix.shape[1]
    small = matrix.T if flip else matrix
    near = basis[:, indices.to(basis.device)].double()
    image = torch.cat([columns.double().T @ near for columns in small.split(CHUNK, dim=1)])  # (larger side, k)
    far, R = torch.linalg.qr(image)
    diagonal = R.diagonal()
    far = far * torch.where(diagonal < 0, -1.0, 1.0)
    near, far, S = near.float(), far.float(), diagonal.abs().float()
    U, Vh = (far, near.T) if flip else (near, far.T)
    return Decomposition(U, S, Vh, energy_of(matrix), passes=0, exact=True)
