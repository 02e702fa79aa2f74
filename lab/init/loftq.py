"""A base quantised to four bits, and the pair that makes up for most of what that lost."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init import Factors
from lab.init.controls import Controlled, Info, balanced_pair
from lab.init.inputs import check_choice, check_finite, check_nonzero, check_rank
from lab.init.svd_cache import leading_triples
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm

# The 16 values of 4-bit NormalFloat (QLoRA, arXiv:2305.14314, appendix E): quantiles of a normal, scaled to ±1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Loftq(Controlled):
    """Alternate Q ← NF4(W − s B A) and s B A ← the rank-r SVD of W − Q, from B A = 0 (LoftQ, arXiv:2310.08659).

    The run trains on Q, which comes back as `Factors.base` in the values its 4-bit form decodes to, so it needs no
    quantised kernels and runs on a CPU. The pair is divided by s; the paper's is not, and is right only for s = 1.
    """

    name: ClassVar[str] = "loftq"
    needs: ClassVar[frozenset[Need]] = frozenset()

    iterations: int
    block_size: int  # consecutive weights of a row-major layer that share one scale
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.svd", self.svd, ALGORITHMS)
        if self.iterations < 1 or self.block_size < 1:
            raise UsageError(
                f"init.iterations={self.iterations} and init.block_size={self.block_size} must both be 1 or more."
            )

    @torch.no_grad()
    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """The pair and its base; info holds the relative errors ‖W − Q‖/‖W‖ and ‖W − Q − s B A‖/‖W‖."""
        check_rank(target, rank)
        weight = weight.detach().to(torch.float32)
        check_finite(target, "the weight", weight)
        check_nonzero(target, "the weight", weight)
        A, B = weight.new_zeros(rank, target.shape[1]), weight.new_zeros(target.shape[0], rank)
        base, info = weight, dict[str, float]()
        for _ in range(self.iterations):
            base = nf4(weight - scaling * B @ A, self.block_size)
            lost = weight - base
            check_nonzero(target, "the error of 4-bit quantisation", lost)
            svd = leading_triples(lost, rank, self.svd)
            A, B = balanced_pair(svd, scaling)
            info = svd.info | _errors(weight, base, scaling * B @ A)
        A, B = self.control(target, weight, A, B, scaling, generator)
        return replace(self.with_measures(A, B, scaling, info), base=base)


def _errors(weight: Tensor, base: Tensor, product: Tensor) -> Info:
    norm = float(torch.linalg.vector_norm(weight))
    return {
        "quantisation_error": float(torch.linalg.vector_norm(weight - base)) / norm,
        "error_left": float(torch.linalg.vector_norm(weight - base - product)) / norm,
    }


def nf4(weight: Tensor, block_size: int) -> Tensor:
    """A float32 matrix as 4-bit NormalFloat decodes it: per block of consecutive entries, absmax times a code value."""
    code = torch.tensor(NF4, device=weight.device)
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    unit = blocks / torch.where(absmax == 0, 1.0, absmax)
    nearest = torch.bucketize(unit, (code[1:] + code[:-1]) / 2)
    return (code[nearest] * absmax).flatten()[: flat.numel()].view_as(weight)
