"""Factoring of a weight at a switch: W ≈ B A from an exact decomposition in float64, with what it leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """A balanced pair, B = U Σ^½ and A = Σ^½ Vᵀ, float64."""

    B: Tensor  # (out, r)
    A: Tensor  # (r, in)
    tail: float  # ‖W − B A‖_F / ‖W‖_F; 0 for a weight of zeros


def leading(weight: Tensor, rank: int) -> Split:
    """The best approximation at a rank (Eckart & Young, 1936)."""
    return _split(weight, slice(None, rank))


def minor(weight: Tensor, rank: int) -> Split:
    """The weight's smallest directions, which seed 001 trains while the others are frozen (MiLoRA's, 2406.09044)."""
    return _split(weight, slice(min(weight.shape) - rank, None))


def onto(weight: Tensor, directions: Tensor | None, rank: int, seed: int) -> Split:
    """A product of 0 that can move along the leading right directions of another matrix, or along random ones.

    A has orthonormal rows and B is 0; random rows where there is no such matrix yet, or not of that rank.
    """
    out, inner = weight.shape
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randn(inner, rank, generator=generator, dtype=torch.float64).to(weight.device)]
    if directions is not None and bool(directions.any()):
        columns.insert(0, torch.linalg.svd(directions.double(), full_matrices=False)[2][:rank].T)
    A = torch.linalg.qr(torch.cat(columns, dim=1))[0][:, :rank].T
    return Split(torch.zeros(out, rank, dtype=torch.float64, device=weight.device), A.contiguous(), 1.0)


def split_for(to: str, start: str, weight: Tensor, state: Mapping[str, Tensor], rank: int, layer: str) -> Split:
    """The pair that a layer comes to: `compress`, or a `delta` from its `start`, on the optimizer's state of a weight.

    A weight of zeros has no directions, and starts from a product of 0 either way.
    """
    if (to == "delta" and start == "zero") or not bool(weight.any()):
        return onto(weight, state.get("momentum", state.get("exp_avg")), rank, crc32(layer.encode()))
    return (leading if to == "compress" else minor)(weight, rank)


def _split(weight: Tensor, kept: slice) -> Split:
    U, S, Vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    half, energy = S[kept].sqrt(), S.square().sum()
    tail = float(((energy - S[kept].square().sum()) / energy).clamp_min(0).sqrt()) if float(energy) > 0 else 0.0
    return Split((U[:, kept] * half).contiguous(), (half[:, None] * Vh[kept]).contiguous(), tail)
