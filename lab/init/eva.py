"""Principal components of the layer's inputs: the directions in which they vary most."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from lab.init import Factors
from lab.init.controls import label_of, measures, turn
from lab.init.inputs import check_choice, check_rank, require
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

    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})
    starts_at_zero: ClassVar[bool] = True

    magnitude: Literal["native", "matched"]
    direction: Literal["scheme", "random"]
    svd: Algorithm

    def __post_init__(self) -> None:
        check_choice("init.magnitude", self.magnitude, ("native", "matched"))
        check_choice("init.direction", self.direction, ("scheme", "random"))
        check_choice("init.svd", self.svd, ALGORITHMS)

    @property
    def label(self) -> str:
        """The name in reports: eva, and in brackets the controls that make it something else."""
        return label_of("eva", self.direction, self.magnitude)

    @torch.no_grad()
    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """A (rank, in) with orthonormal rows, B (out, rank) zero; info says how much input variance A keeps."""
        check_rank(target, rank)
        moment = require(target, evidence, "activations")
        components = decompose(moment, rank, self.svd, generator)  # symmetric: σ are the variances, Vh their directions
        A = components.Vh
        captured = float(components.S.double().sum() / moment.diagonal().double().sum())
        if self.direction == "random":
            A = turn(A, generator)
        if self.magnitude == "matched":
            A = A / math.sqrt(3)
        B = torch.zeros((target.shape[0], rank), device=A.device)
        info = components.info | {"captured_energy": captured} | measures(A, B, scaling)
        return Factors(A.contiguous(), B, offset="none", info=info)
