"""SVD of the direction in which the weight is about to move (seed 000's idea, with sign, size and offset right)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init.controls import Info, WithOffset, balanced_pair, scale_to
from lab.init.inputs import OFFSETS, check_choice, check_nonzero, require
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose
from lab.structure import Offset


@dataclass(frozen=True, kw_only=True)
class Svd(WithOffset):
    """D ≈ U diag(S) Vh, A = c S^½ Vh, B = c U S^½, where D is the direction of the weight's update.

    `gradient`: D = −G, c such that ‖s B A‖_F = size · ‖W‖_F, offset separate: only the direction is used.
    `warmup`, `teacher`: D = ΔW of a short full-rank run, or of a teacher; c = s^-½, so that s B A = D's best rank-r
    approximation, offset none: the pair starts where that run ended. A teacher is an oracle: it knows the answer.
    """

    source: Literal["gradient", "warmup", "teacher"]
    size: float  # ‖s B A‖_F as a share of ‖W‖_F; source=gradient only
    warmup_steps: int  # optimizer steps of the full-rank run whose ΔW is taken; source=warmup only
    warmup_lr: float  # AdamW's rate in that run, constant
    teacher: str | None  # folder or hub name of the fine-tuned model; source=teacher only
    svd: Algorithm
    offset: Offset | Literal["auto"]  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.source", self.source, ("gradient", "warmup", "teacher"))
        check_choice("init.svd", self.svd, ALGORITHMS)
        if self.source == "teacher" and self.teacher is None:
            raise UsageError(
                "init.source=teacher needs a fine-tuned model of the base's shapes; name it: init.teacher=DIR."
            )
        if self.source == "warmup" and self.warmup_steps < 1:
            raise UsageError(
                f"init.warmup_steps={self.warmup_steps} leaves no weight change to decompose; use 1 or more."
            )
        if not 0 < self.warmup_lr < math.inf:
            raise UsageError(f"init.warmup_lr={self.warmup_lr} must be above 0 and finite, such as 1e-4.")
        if not 0 < self.size < math.inf:
            raise UsageError(f"init.size={self.size} is not a positive number; it is a share of ‖W‖ such as 0.01.")

    @property
    def name(self) -> str:
        """`svd[gradient]`, with its source: a bare `svd` could be taken for the SVD of W."""
        return f"svd[{self.source}]"

    @property
    def needs(self) -> frozenset[Need]:
        """The gradient, or a weight change."""
        return frozenset({"gradient"}) if self.source == "gradient" else frozenset({"delta"})

    @property
    def offsets(self) -> tuple[str, ...]:
        """The values `offset` may take: `auto` follows the source."""
        return ("auto", *OFFSETS)

    @property
    def applied_offset(self) -> Offset:
        """With `auto`: separate for a gradient, whose length is arbitrary; none for a weight change, which is meant."""
        if self.offset != "auto":
            return self.offset
        return "separate" if self.source == "gradient" else "none"

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """The direction's best rank-r approximation; raises UsageError without evidence or where it is zero."""
        if self.source == "gradient":
            check_nonzero(target, "the weight", weight)  # `size` is a share of its norm
            D = -require(target, evidence, "gradient")
        else:
            D = require(target, evidence, "delta")
        svd = decompose(D, rank, self.svd, generator)
        A, B = balanced_pair(svd, scaling)
        if self.source == "gradient":
            A, B = scale_to(A, B, scaling, self.size * float(torch.linalg.vector_norm(weight)))
        return A, B, svd.info
