"""The directions in which the layer's inputs vary most."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lab.init import Factors
from lab.init.controls import labelled, measures, turned
from lab.init.inputs import check_choice, check_rank, gathered
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm, decompose


@dataclass(frozen=True, kw_only=True)
class Eva:
    """A = the r leading eigenvectors of E[x xᵀ], B = 0 (EVA, arXiv:2410.07170).

    They are the right singular vectors of the inputs, not centred: the layer multiplies x, mean included. peft's
    incremental PCA subtracts the mean. The product is zero, so its size cannot be matched; `magnitude=matched` gives
    A, which sets the size of the first step, plain LoRA's expected norm √(rank/3) in place of √rank.
    EVA's redistribution of ranks is a strategy of its own: rank_strategy=eva.
    """

    magnitude: Literal["native", "matched"]
    direction: Literal["scheme", "random"]
    svd: Algorithm

    def __post_init__(self) -> None:
        check_choice("init.magnitude", self.magnitude, ("native", "matched"))
        check_choice("init.direction", self.direction, ("scheme", "random"))
        check_choice("init.svd", self.svd, ALGORITHMS)

    @property
    def label(self) -> str:
        """What reports call it."""
        return labelled("eva", self.direction, self.magnitude)

    @property
    def needs(self) -> frozenset[Need]:
        """The second moment of the inputs."""
        return frozenset({"activations"})

    @torch.no_grad()
    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """A (rank, in) with orthonormal rows, B (out, rank) zero; info says how much input variance A keeps."""
        check_rank(target, rank)
        moment = gathered(target, evidence, "activations")
        found = decompose(moment, rank, self.svd, generator)  # symmetric: σ are the variances, Vh their directions
        A = found.Vh
        info = found.info | {"captured_energy": float(found.S.double().sum() / moment.diagonal().double().sum())}
        if self.direction == "random":
            A = turned(A, generator)
        if self.magnitude == "matched":
            A = A / math.sqrt(3)
        B = torch.zeros((target.shape[0], rank), device=A.device)
        return Factors(A.contiguous(), B, offset="none", info=info | measures(A, B, scaling))
