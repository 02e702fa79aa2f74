"""Plain LoRA's start: one side random, the other zero, so the product is exactly zero and step 0 is the base."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from lab.init import Factors
from lab.init.inputs import check_choice, check_positive, check_rank, normal, uniform
from lab.layer import Evidence, Need, Target


@dataclass(frozen=True, kw_only=True)
class Random:
    """Plain LoRA (arXiv:2106.09685): noise in one factor, zero in the other.

    `kaiming` is U(±1/√fan_in), fan_in being `in` for A and the rank for B; `gaussian` is N(0, 1/rank²), as in peft.
    `filled=B` is Init[B] of Hayou et al. (arXiv:2406.08447). `gain` multiplies the noise.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    starts_at_zero: ClassVar[bool] = True

    distribution: Literal["kaiming", "gaussian"]
    filled: Literal["A", "B"]
    gain: float = 1.0  # runs of before 2026-11-28 have none in their config

    def __post_init__(self) -> None:
        check_choice("init.distribution", self.distribution, ("kaiming", "gaussian"))
        check_choice("init.filled", self.filled, ("A", "B"))
        check_positive("init.gain", self.gain, "; 1 is plain LoRA's noise")

    @property
    def label(self) -> str:
        """The name in reports: random or gaussian, with [B] where B is filled and [gain g] where that is not 1."""
        name = "random" if self.distribution == "kaiming" else self.distribution
        options = ["B"] * (self.filled == "B") + [f"gain {self.gain:g}"] * (self.gain != 1)
        return f"{name}[{', '.join(options)}]" if options else name

    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """A (rank, in) and B (out, rank), one of them zero; raises UsageError on a rank the layer cannot hold."""
        check_rank(target, rank)
        out, inner = target.shape
        shape, fan_in = ((rank, inner), inner) if self.filled == "A" else ((out, rank), rank)
        if self.distribution == "kaiming":
            noise = uniform(shape, 1 / math.sqrt(fan_in), generator, weight) * self.gain
        else:
            noise = normal(shape, generator, weight) / rank * self.gain
        zero = torch.zeros((out, rank) if self.filled == "A" else (rank, inner), device=weight.device)
        A, B = (noise, zero) if self.filled == "A" else (zero, noise)
        return Factors(A, B, offset="none", info={"product_norm": 0.0, "dead_components": 0.0})
