"""Controls that separate direction from size, shared by every scheme whose product is not random.

`magnitude=matched` scales the product to a stated norm, `direction=random` turns it into random directions of the
same singular values; together they say whether a scheme's gain comes from where it points or from how long it is
(arXiv:2507.06558 attributes spectral gains to length).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init import Factors
from lab.init.inputs import OFFSETS, check_choice, check_finite, check_nonzero, check_positive, check_rank, normal
from lab.layer import Evidence, Target
from lab.spectral.decomposition import Decomposition
from lab.structure import Offset

Info = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """A scheme with both controls; a subclass gives its `name`, its `needs` and the pair itself."""

    starts_at_zero: ClassVar[bool] = False

    magnitude: Literal["native", "matched"]
    matched_norm: float  # ‖scaling · B A‖_F as a share of ‖W‖_F, used by magnitude=matched
    direction: Literal["scheme", "random"]

    def __post_init__(self) -> None:
        check_choice("init.magnitude", self.magnitude, ("native", "matched"))
        check_choice("init.direction", self.direction, ("scheme", "random"))
        check_positive("init.matched_norm", self.matched_norm, "; give a share of ‖W‖ such as 0.01")

    @property
    def name(self) -> str:
        """The scheme's own name, without the controls: a class attribute, or a property where an option decides."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The name in reports: its own, and in brackets whatever makes it something else: `pissa[random]`."""
        return label_of(self.name, self.direction, self.magnitude)

    @property
    def applied_offset(self) -> Offset:
        """None, unless a subclass says otherwise."""
        return "none"

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """The scheme's own A (rank, in) and B (out, rank), and scalars for the record."""
        raise NotImplementedError

    @torch.no_grad()
    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """The scheme's pair with the controls applied; raises UsageError on a rank or a weight it cannot work with."""
        check_rank(target, rank)
        weight = weight.detach().to(torch.float32)
        check_finite(target, "the weight", weight)
        A, B, info = self.pair(target, weight, rank, scaling, evidence, generator)
        A, B = self.control(target, weight, A, B, scaling, generator)
        return self.with_measures(A, B, scaling, info)

    def with_measures(self, A: Tensor, B: Tensor, scaling: float, info: Info) -> Factors:
        """The controlled pair with its offset and its measures."""
        return Factors(A.contiguous(), B.contiguous(), self.applied_offset, info=info | measures(A, B, scaling))

    def control(
        self, target: Target, weight: Tensor, A: Tensor, B: Tensor, scaling: float, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The pair turned and scaled as `direction` and `magnitude` ask."""
        if self.direction == "random":
            A, B = turn(A, generator), turn(B.T, generator).T
        if self.magnitude == "matched":
            check_nonzero(target, "the weight", weight)  # a share of ‖W‖ = 0 would be 0
            A, B = scale_to(A, B, scaling, self.matched_norm * float(torch.linalg.vector_norm(weight)))
        return A, B


@dataclass(frozen=True, kw_only=True)
class WithOffset(Controlled):
    """A controlled scheme whose product is not zero, so that the user may choose what becomes of it at step 0."""

    offset: Offset

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.offset", self.offset, self.offsets)

    @property
    def offsets(self) -> tuple[str, ...]:
        """The values `offset` may take."""
        return OFFSETS

    @property
    def applied_offset(self) -> Offset:
        """The offset the pair gets."""
        return self.offset


def label_of(name: str, direction: str, magnitude: str) -> str:
    """`svd[gradient]` with a random direction and a matched size is `svd[gradient,random,matched]`."""
    notes = [name[name.index("[") + 1 : -1]] if "[" in name else []
    notes += ["random"] * (direction == "random") + ["matched"] * (magnitude == "matched")
    return f"{name.split('[')[0]}[{','.join(notes)}]" if notes else name


def turn(rows: Tensor, generator: Generator) -> Tensor:
    """The same matrix (r, n) in a random r-dimensional subspace: its singular values and its left frame stay.

    rows = Rᵀ Qᵀ with Q orthonormal (n, r) becomes Rᵀ Q'ᵀ with Q' random, Haar-distributed up to column signs. Turning
    both A and Bᵀ keeps the singular values of A, of B and of B A.
    """
    n = rows.shape[1]
    R = torch.linalg.qr(rows.T, mode="r").R  # Q of a random normal matrix is uniform over frames
    frame = torch.linalg.qr(normal((n, rows.shape[0]), generator, rows)).Q
    return R.T @ frame.T


def product_norm(A: Tensor, B: Tensor) -> float:
    """‖B A‖_F without forming it: ‖BA‖² = ⟨BᵀB, AAᵀ⟩, in float64."""
    A, B = A.double(), B.double()
    return math.sqrt(max(float(((B.T @ B) * (A @ A.T)).sum()), 0.0))


def scale_to(A: Tensor, B: Tensor, scaling: float, norm: float) -> tuple[Tensor, Tensor]:
    """The pair with ‖scaling · B A‖_F = norm, A and B scaled alike; raises UsageError where the product is zero."""
    now = scaling * product_norm(A, B)
    if not now:
        raise UsageError("init.magnitude=matched cannot scale a product that is zero at step 0; leave it native.")
    factor = math.sqrt(norm / now)
    return factor * A, factor * B


def measures(A: Tensor, B: Tensor, scaling: float) -> Info:
    """‖scaling · B A‖_F, and how many of the rank's components are zero on both sides and so can never train."""
    dead = (A == 0).all(dim=1) & (B == 0).all(dim=0)
    return {"product_norm": scaling * product_norm(A, B), "dead_components": float(dead.sum())}


def balanced_pair(svd: Decomposition, scaling: float) -> tuple[Tensor, Tensor]:
    """A = (S/scaling)^½ Vh and B = U (S/scaling)^½, so that scaling · B A = U diag(S) Vh."""
    root = (svd.S / scaling).sqrt()
    return root[:, None] * svd.Vh, svd.U * root
