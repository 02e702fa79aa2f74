"""From bases and matrices to the float32 curves of a diagnosis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lab.spectral.diagnosis import (
    Counts,
    Curve,
    Diagnosis,
    Engine,
    NormRatios,
    Shares,
    Turn,
    angle_counts_for,
    counts_for,
)
from lab.spectral.energy import concentration, fractions, sketched_concentration
from lab.spectral.spectrum import energy
from lab.spectral.subspace import angle_curve, gram, overlap_curve, rotation


class Directions(Protocol):
    """A basis at a tick."""

    @property
    def tick(self) -> int: ...
    @property
    def U(self) -> Tensor: ...
    @property
    def S(self) -> Tensor: ...
    @property
    def V(self) -> Tensor: ...
    @property
    def directions(self) -> int: ...


def curve(values: Tensor) -> Curve:
    """A float32 array on the CPU."""
    return np.asarray(values.detach().to("cpu", torch.float32).numpy())


def empty(tick: int, shape: tuple[int, int], engine: Engine, reason: str, k: int) -> Diagnosis:
    """The diagnosis of a weight without a direction: zero, or not finite."""
    none, nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return Diagnosis(
        tick=tick,
        shape=shape,
        engine=engine,
        reason=reason,
        k=k,
        counts=none,
        angle_counts=none,
        energy=0.0 if reason == "zero_matrix" else None,
        singular_values=nothing,
        whole=False,
        residual=None,
        stable_rank=None,
        entropy_rank=None,
        participation=None,
    )


def turns(before: Sequence[Directions], now: Sequence[Directions], k: int) -> list[Turn]:
    """How the directions of layers of one shape turned between two ticks, as far as both ticks have them."""
    widest = max(basis.directions for basis in now)
    angle_counts = angle_counts_for(widest, k)
    last = int(angle_counts[-1])
    curves: dict[str, Curve] = {}
    for side in ("U", "V"):
        earlier = torch.stack([getattr(basis, side)[:, :widest] for basis in before])
        later = torch.stack([getattr(basis, side)[:, :widest] for basis in now])
        curves[f"overlap_{side}"] = curve(overlap_curve(earlier, later))
        curves[f"angle_{side}"] = curve(angle_curve(earlier[..., :last], later[..., :last], angle_counts.tolist()))
    found = []
    for i, (old, new) in enumerate(zip(before, now, strict=True)):
        shared = min(old.directions, new.directions)
        counts, angles = counts_for(new.directions, k), angle_counts_for(new.directions, k)
        places = counts[counts <= shared] - 1
        angle_places = np.searchsorted(angle_counts, angles[angles <= shared])
        found.append(
            Turn(
                tick=old.tick,
                angle_left=curves["angle_U"][i][angle_places],
                angle_right=curves["angle_V"][i][angle_places],
                overlap_left=curves["overlap_U"][i][places],
                overlap_right=curves["overlap_V"][i][places],
            )
        )
    return found


def norm_ratios(
    weight: Tensor, now: Directions, before: Directions | None, gradient: Tensor | None, k: int
) -> NormRatios:
    """Seed 001's metrics by its own formulas, in its own order of operations, float32 throughout."""
    U, norm = now.U, torch.linalg.norm
    U_k, U_m = U[:, :k], U[:, k:]
    angle = principal = minor = None
    if before is not None:
        cosines = torch.linalg.svdvals(before.U[:, :k].mT @ U_k)
        angle = float(torch.acos(torch.clamp(cosines.min(), -1.0, 1.0)))
    if gradient is not None and float(norm(G := gradient.detach().float())) > 0:
        principal = float(norm(U_k @ (U_k.mT @ G)) / norm(G))
        minor = float(norm(U_m @ (U_m.mT @ G)) / norm(G))
    kept = U_k @ torch.diag(now.S[:k]) @ now.V[:, :k].mT
    error = float(norm(weight - kept) / norm(weight))
    return NormRatios(k=k, angle=angle, principal=principal, minor=minor, reconstruction_error=error)


@dataclass(frozen=True)
class Spread:
    """How the matrices X (b, out, in) lie on bases U and V of K directions; float64 on the device."""

    totals: Sequence[float]
    concentrations: Sequence[float]
    sketched: bool
    left: Tensor  # (b, K)
    right: Tensor
    core: Tensor
    across_left: Tensor  # (b, K, K) Gram of XV
    across_right: Tensor  # (b, K, K) Gram of XᵀU
    within: Tensor  # (b, K, K) UᵀXV

    def rates(self, i: int, S: Tensor, counts: Counts, k: int) -> dict[str, Any]:
        """Of the i-th X as an applied update: rotation of the k directions, relative growth of each; per step."""
        k = min(k, int(counts[-1]))
        S = S[: self.within.shape[-1]].double()
        growth = self.within[i].diagonal() / S.clamp_min(torch.finfo(torch.float32).tiny)
        head, within = S[:k], self.within[i, :k, :k]
        return {
            "growth": curve(growth)[counts - 1],
            "rotation_left": float(rotation(self.across_left[i, :k, :k], within, head)),
            "rotation_right": float(rotation(self.across_right[i, :k, :k], within.mT, head)),
        }


def spread(matrices: Sequence[Tensor], U: Tensor, V: Tensor, probes: Tensor | None) -> Spread:
    """Project float32 matrices (out, in) of one shape on U (b, out, K) and V (b, in, K).

    With probes (in, h) of standard normals the concentration is sketched, in the same pass; without, exact.
    """
    totals = [energy(X) for X in matrices]
    sound = [0 < total < float("inf") for total in totals]
    X = [matrix if good else torch.zeros_like(matrix) for matrix, good in zip(matrices, sound, strict=True)]
    K = V.shape[-1]
    wide = V if probes is None else torch.cat([V, probes.expand(len(X), -1, -1)], -1)
    image = torch.stack([matrix @ block for matrix, block in zip(X, wide, strict=True)])
    XV, UX = image[..., :K], torch.stack([block.mT @ matrix for matrix, block in zip(X, U, strict=True)])
    within = UX @ V
    scale = torch.tensor(
        [total if good else 1.0 for total, good in zip(totals, sound, strict=True)], dtype=torch.float64
    )
    left, right, core = fractions(UX, XV, within, scale.to(V.device))
    if probes is None:
        concentrations = [concentration(matrix) if good else 0.0 for matrix, good in zip(X, sound, strict=True)]
    else:
        concentrations = torch.where(
            torch.tensor(sound), sketched_concentration(image[..., K:]).cpu(), torch.zeros(())
        ).tolist()
    return Spread(totals, concentrations, probes is not None, left, right, core, gram(XV), gram(UX.mT), within.double())


def shares(spread: Spread, i: int, counts: Counts) -> Shares:
    """The i-th matrix's energy curves at `counts`; empty curves for a zero or non-finite one."""
    total = spread.totals[i]
    finite = total < float("inf")  # NaN compares false too
    if not (finite and total > 0):
        nothing = np.zeros(0, np.float32)
        return Shares(
            total=0.0 if total == 0 else None,
            concentration=0.0,
            sketched=False,
            left=nothing,
            right=nothing,
            core=nothing,
        )
    return Shares(
        total=total,
        concentration=spread.concentrations[i],
        sketched=spread.sketched,
        left=curve(spread.left[i])[counts - 1],
        right=curve(spread.right[i])[counts - 1],
        core=curve(spread.core[i])[counts - 1],
    )
