"""GoRA's start: plain LoRA's A, and the B with which it comes closest to a gradient step."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lab.init.controls import Info, WithOffset
from lab.init.inputs import check_positive, require, uniform
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import energy_of


@dataclass(frozen=True, kw_only=True)
class Gora(WithOffset):
    """A Kaiming, B = −(gamma/s) √(in/r) · G Aᵀ (A Aᵀ)⁻¹: least squares for −G given A (GoRA, arXiv:2502.12171).

    A random A keeps r/in of the gradient's energy; √(in/r) makes up for it, so ‖s B A‖ ≈ gamma · ‖G‖ at any rank and
    scaling. GoRA's ranks are a strategy of their own: rank_strategy=gora.
    """

    name: ClassVar[str] = "gora"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("init.gamma", self.gamma, "; it is the length of a step such as 0.05")

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """A random row space and the gradient's coordinates in it."""
        G = require(target, evidence, "gradient")
        inner = target.shape[1]
        A = uniform((rank, inner), 1 / math.sqrt(inner), generator, weight)
        Q, R = torch.linalg.qr(A.T)  # A = Rᵀ Qᵀ, so Aᵀ (A Aᵀ)⁻¹ = Q R⁻ᵀ without squaring A's condition number
        inside = G @ Q
        B = torch.linalg.solve_triangular(R.T, inside, upper=False, left=False)  # B Rᵀ = G Q
        captured = energy_of(inside) / energy_of(G)
        return A, -(self.gamma / scaling) * math.sqrt(inner / rank) * B, {"captured_energy": captured}
