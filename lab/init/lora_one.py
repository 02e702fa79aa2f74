"""The first full gradient step itself, cut to rank r: training starts one step ahead, along −G."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init.controls import Info, WithOffset
from lab.init.inputs import check_choice, gathered
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose


@dataclass(frozen=True, kw_only=True)
class LoraOne(WithOffset):
    """−G = U diag(S) Vh, A = (S/S₁)^½ Vh / √gamma, B = U (S/S₁)^½ / √gamma (LoRA-One, arXiv:2502.01235).

    Formulas as in the paper's code; its README leaves out the root and S₁.
    """

    gamma: float
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.svd", self.svd, ALGORITHMS)
        if not 0 < self.gamma < math.inf:
            raise UsageError(f"init.gamma={self.gamma} is not positive and finite; the paper's code takes 128.")

    @property
    def name(self) -> str:
        """lora_one."""
        return "lora_one"

    @property
    def needs(self) -> frozenset[Need]:
        """The gradient."""
        return frozenset({"gradient"})

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """The best rank-r approximation of −G, its greatest singular value brought to 1/gamma."""
        found = decompose(-gathered(target, evidence, "gradient"), rank, self.svd, generator)
        root = (found.S / found.S[0]).sqrt() / math.sqrt(self.gamma)
        return root[:, None] * found.Vh, found.U * root, found.info
