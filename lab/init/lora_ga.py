"""Factors whose first step is the best rank-2r approximation of the full gradient step."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from lab.init.controls import Info, WithOffset
from lab.init.inputs import check_choice, check_positive, check_rank, require
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose


@dataclass(frozen=True, kw_only=True)
class LoraGa(WithOffset):
    """G = U diag(S) Vh, A = c Vh[:r], B = c U[:, r:2r], c = out^¼ / √stable_gamma (LoRA-GA, arXiv:2407.05000).

    One gradient step moves the product by −η s² (B Bᵀ G + G Aᵀ A) = −η s² c² (G's part in the first 2r triples).
    peft's `lora_ga` leaves c out of A and multiplies B by S, and loses that theorem.
    """

    name: ClassVar[str] = "lora_ga"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    stable_gamma: float
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.svd", self.svd, ALGORITHMS)
        check_positive("init.stable_gamma", self.stable_gamma, "; the paper takes 16")

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """Orthonormal frames of the gradient; raises UsageError where 2 · rank exceeds the smaller side."""
        check_rank(target, rank, target.max_rank // 2, "half its smaller side: lora_ga takes 2 x rank directions")
        G = decompose(require(target, evidence, "gradient"), 2 * rank, self.svd, generator)
        c = target.shape[0] ** 0.25 / math.sqrt(self.stable_gamma)
        return c * G.Vh[:rank], c * G.U[:, rank:], G.info
