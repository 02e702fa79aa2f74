"""Factors whose first step is the best rank-2r approximation of the full gradient step."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init.controls import Info, WithOffset
from lab.init.inputs import check_choice, check_rank, gathered
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose


@dataclass(frozen=True, kw_only=True)
class LoraGa(WithOffset):
    """G = U diag(S) Vh, A = c Vh[:r], B = c U[:, r:2r], c = out^¼ / √stable_gamma (LoRA-GA, arXiv:2407.05000).

    One gradient step moves the product by −η s² (B Bᵀ G + G Aᵀ A) = −η s² c² (G's part in the first 2r triples).
    peft's `lora_ga` leaves c out of A and multiplies B by S, and loses that theorem.
    """

    stable_gamma: float
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.svd", self.svd, ALGORITHMS)
        if not 0 < self.stable_gamma < math.inf:
            raise UsageError(f"init.stable_gamma={self.stable_gamma} is not positive and finite; the paper takes 16.")

    @property
    def name(self) -> str:
        """lora_ga."""
        return "lora_ga"

    @property
    def needs(self) -> frozenset[Need]:
        """The gradient."""
        return frozenset({"gradient"})

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """Orthonormal frames of the gradient; raises UsageError where 2 · rank exceeds the smaller side."""
        check_rank(target, rank, target.max_rank // 2, "half its smaller side: lora_ga takes 2 x rank directions")
        found = decompose(gathered(target, evidence, "gradient"), 2 * rank, self.svd, generator)
        c = target.shape[0] ** 0.25 / math.sqrt(self.stable_gamma)
        return c * found.Vh[:rank], c * found.U[:, rank:], found.info
