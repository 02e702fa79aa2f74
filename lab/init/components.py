"""Singular components of the weight itself: the greatest, the smallest, the middle ones or a random choice."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init.controls import Info, WithOffset, balanced_pair
from lab.init.inputs import check_choice, check_nonzero
from lab.init.svd_cache import leading_triples, triples_at
from lab.layer import Evidence, Need, Target
from lab.spectral.decomposition import ALGORITHMS, Algorithm

Which = Literal["principal", "minor", "middle", "random"]
NAMES = {"principal": "pissa", "minor": "milora", "middle": "middle", "random": "random_components"}


@dataclass(frozen=True, kw_only=True)
class Components(WithOffset):
    """A = (S/s)^½ Vh, B = U (S/s)^½ over chosen triples of W = U diag(S) Vh, so that s B A is that part of W.

    `principal` is PiSSA (arXiv:2404.02948), `minor` MiLoRA (arXiv:2406.09044); `middle` and `random` are the controls
    of MiLoRA's ablation. Only principal components can be sketched; the others are always exact.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    which: Which
    svd: Algorithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init.which", self.which, tuple(NAMES))
        check_choice("init.svd", self.svd, ALGORITHMS)
        if self.which != "principal" and self.svd != "exact":
            raise UsageError(
                f"init.svd={self.svd} cannot find the {self.which} components, only the principal ones; use exact."
            )

    @property
    def name(self) -> str:
        """pissa, milora, middle or random_components."""
        return NAMES[self.which]

    def pair(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> tuple[Tensor, Tensor, Info]:
        """The chosen part of the weight, split evenly; raises UsageError where that part is zero."""
        check_nonzero(target, "the weight", weight)
        if self.which == "principal":
            part = leading_triples(weight, rank, self.svd)
        else:
            part = triples_at(weight, component_indices(self.which, target.max_rank, rank, generator))
        A, B = balanced_pair(part, scaling)
        check_nonzero(target, f"the {self.which} part of the weight", A)
        return A, B, part.info


def component_indices(which: Which, count: int, rank: int, generator: Generator) -> Tensor:
    """Indices, ascending, of `rank` out of `count` singular values in descending order."""
    if which == "random":
        drawn = torch.randperm(count, generator=generator, device=generator.device)[:rank]
        return drawn.sort().values.cpu()
    start = {"principal": 0, "minor": count - rank, "middle": (count - rank) // 2}[which]
    return torch.arange(start, start + rank)
