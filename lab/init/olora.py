"""An orthonormal basis of the weight's first columns, and the weight's coordinates in it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lab.init.controls import Info, WithOffset
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import energy_of


@dataclass(frozen=True, kw_only=True)
class Olora(WithOffset):
    """W = Q R, B = Q[:, :r], A = R[:r] (OLoRA, arXiv:2406.01775), native in the paper's size: B A is not divided by s.

    Without pivoting these are the directions of the first r columns, whatever their weight. Householder's first r
    steps see only those columns, so a QR of them gives the same Q, and R[:r] = Qᵀ W, at r/in of the cost.
    """

    name: ClassVar[str] = "olora"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """Defined for every finite weight: a zero one gives A = 0 and an orthonormal B."""
        B = torch.linalg.qr(weight[:, :rank]).Q
        A = B.T @ weight
        energy = energy_of(weight)
        return A, B, {"captured_energy": energy_of(A) / energy if energy else 0.0}
