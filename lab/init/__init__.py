"""Initialisation of the low-rank pair at step 0: the protocol that every scheme follows."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Generator, Tensor

from lab.layer import Evidence, Need, Target
from lab.structure import Offset

__all__ = ["Evidence", "Factors", "InitScheme", "Need", "Offset", "Target"]


@dataclass(frozen=True)
class Factors:
    """A filled pair: the layer computes W x + scaling · B A x (− scaling · B₀ A₀ x with an offset)."""

    A: Tensor  # (rank, in), float32
    B: Tensor  # (out, rank), float32
    offset: Offset = "none"  # separate: W untouched, the initial pair rides along frozen with −scaling;
    #                          fold: W gives up scaling · B A (peft parity); none: the function moves at step 0
    base: Tensor | None = None  # (out, in), the weight the layer must take in place of its own: a quantised base
    info: dict[str, float] = field(default_factory=dict)  # scalars for the record, such as captured_energy


class InitScheme(Protocol):
    """A scheme fills one layer's pair; it is called once per target, in module order, by one process of the job.

    A class may also carry `starts_at_zero` (False: B A is not zero at step 0, so DoRA is refused before anything is
    loaded) and `conflicts` (what it refuses beside it); `lab.config.validate` asks for both.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """The Evidence to gather first: a class attribute, or a property where an option decides."""
        ...

    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """The pair for a weight (out, in) in float32; `generator` is private to the layer and seeded."""
        ...
