"""Factoring of a weight at a switch: W ≈ B A from an exact decomposition in float64, with what it leaves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from lab.editors.moments import Adam, Factors, State, scaling_for_adam, split_adam, step_for_muon
from lab.structure import LayerForm
from lab.svd_policy.switching import Move, Switching


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
    empty = not bool(weight.any())
    if (to == "delta" and start == "zero") or empty:
        split = onto(weight, state.get("momentum", state.get("exp_avg")), rank, crc32(layer.encode()))
        return replace(split, tail=0.0) if empty else split
    return (leading if to == "compress" else minor)(weight, rank)


def _split(weight: Tensor, kept: slice) -> Split:
    U, S, Vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    half, energy = S[kept].sqrt(), S.square().sum()
    tail = float(((energy - S[kept].square().sum()) / energy).clamp_min(0).sqrt()) if float(energy) > 0 else 0.0
    return Split((U[:, kept] * half).contiguous(), (half[:, None] * Vh[kept]).contiguous(), tail)


@dataclass(frozen=True)
class Factored:
    """A layer's new form, made on rank 0."""

    form: LayerForm
    tensors: Mapping[str, Tensor]  # A, B, and E where it stays
    states: tuple[State, State]  # of A and of B; empty before the first step
    tail: float  # ‖W − s B A‖_F / ‖W‖_F


def factored(
    move: Move, W: Tensor, group: dict[str, Any], state: State, step: int, policy: Switching, dtype: torch.dtype
) -> Factored:
    """The pair, its optimizer states and what it leaves, from a weight and the state of that.

    `group` is the weight's in the optimizer; `dtype` that of Muon's products.
    """
    assert move.rank is not None, "a low-rank move without a rank"
    split, kind = split_for(move.to, policy.start, W, state, move.rank, move.layer), move.to
    pair = Factors(split.A.float(), split.B.float())
    states: tuple[State, State] = ({}, {})
    if group.get("kind") == "muon":
        momentum = state.get("momentum")
        pair.step = step_for_muon(momentum, pair, dtype)
        if momentum is not None:
            states = ({"momentum": pair.B.T @ momentum}, {"momentum": momentum @ pair.A.T})
    else:
        adam = Adam.of(state, group) if state else None
        s = scaling_for_adam(adam, pair)
        pair = Factors((split.A / math.sqrt(s)).float(), (split.B / math.sqrt(s)).float(), s)
        if adam is not None:
            of_B, of_A = split_adam(adam, pair)
            # A of a product of 0 has seen no gradient: its moments begin anew, and so does their bias correction.
            count = state["step"] if bool(pair.B.any()) else torch.zeros_like(state["step"])
            states = (of_A.state(count, group), of_B.state(state["step"], group))
    fades = kind == "compress" and policy.residual == "fade"
    form = LayerForm(
        "delta" if kind == "delta" else "fading" if fades else "low_rank",
        rank=move.rank,
        scaling=pair.scaling,
        step=pair.step,
        since=step,
    )
    tensors = {"A": pair.A, "B": pair.B}
    if form.form != "low_rank":
        tensors["E"] = W - (pair.scaling * (pair.B.double() @ pair.A.double())).float()
    return Factored(form, tensors, states, split.tail)
