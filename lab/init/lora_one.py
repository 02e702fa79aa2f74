"""Gradient step of the whole weight, cut to rank r: training starts one step ahead, along −G."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from lab.init.controls import Info, WithOffset
from lab.init.inputs import check_choice, check_positive, require
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose


@dataclass(frozen=True, kw_only=True)
class LoraOne(WithOffset):
    """−G = U diag(S) Vh, A = (S/S₁)^½ Vh / √gamma, B = U (S/S₁)^½ / √gamma (LoRA-One, arXiv:2502.01235).

    Formulas as in the paper's code; its README leaves out the root and S₁.
    """

    name: ClassVar[str] = "lora_one"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    gamma: float
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.svd", self.svd, ALGORITHMS)
        check_positive("init.gamma", self.gamma, "; the paper's code takes 128")

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """The best rank-r approximation of −G, its greatest singular value brought to 1/gamma."""
        step = decompose(-require(target, evidence, "gradient"), rank, self.svd, generator)
        root = (step.S / step.S[0]).sqrt() / math.sqrt(self.gamma)
        return root[:, None] * step.Vh, step.U * root, step.info
