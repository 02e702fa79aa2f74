"""Components of the weight chosen by what the inputs make of them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init.controls import Info, WithOffset
from lab.init.inputs import check_choice, check_nonzero, check_positive, require
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose, exact_basis, triples


@dataclass(frozen=True, kw_only=True)
class Corda(WithOffset):
    """W C = U diag(S) Vh, A = (S/s)^½ Vh C⁻¹, B = U (S/s)^½ over r triples (CorDA, arXiv:2406.05223).

    C = E[x xᵀ] brought to a mean diagonal of 1, plus damping · I: its scale would shift size from A to B, and the
    damping keeps it invertible. `ipm` adapts the r greatest triples, `kpm` the r smallest, which the data use least.
    Since S Vh C⁻¹ = Uᵀ W, no inverse is taken: s B A = U Uᵀ W. Any batch size works, C being a mean over tokens.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    variant: Literal["ipm", "kpm"]
    damping: float
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.variant", self.variant, ("ipm", "kpm"))
        check_choice("init.svd", self.svd, ALGORITHMS)
        if self.variant == "kpm" and self.svd != "exact":
            raise UsageError(f"init.svd={self.svd} cannot find the smallest triples that kpm adapts; use exact.")
        check_positive("init.damping", self.damping, ", so C may have no inverse; use 0.01")

    @property
    def name(self) -> str:
        """corda[ipm] or corda[kpm]."""
        return f"corda[{self.variant}]"

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """The chosen part U Uᵀ W of the weight; raises UsageError where that part is zero."""
        check_nonzero(target, "the weight", weight)
        C = require(target, evidence, "activations")
        C = C / C.diagonal().mean()
        C.diagonal().add_(self.damping)
        WC = weight @ C
        if self.variant == "ipm":
            part = decompose(WC, rank, self.svd, generator)
        else:
            part = triples(WC, exact_basis(WC), torch.arange(target.max_rank - rank, target.max_rank))
        inverse_root = torch.where(part.S > 0, part.S.rsqrt(), 0.0)
        A = inverse_root[:, None] * (part.U.T @ weight) / scaling**0.5
        check_nonzero(target, f"the part of the weight that {self.variant} adapts", A)
        return A, part.U * (part.S / scaling).sqrt(), part.info
