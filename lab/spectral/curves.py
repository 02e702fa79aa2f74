"""From bases and matrices to the float32 curves of a diagnosis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lab.spectral.diagnosis import (
    Change,
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
from lab.spectral.iteration import times
from lab.spectral.noise import intruders, spikes
from lab.spectral.spectrum import energy, entropy_rank, singular_values, stable_rank
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
    sides = [
        (torch.stack([getattr(basis, side)[:, :widest] for basis in before]), [getattr(basis, side) for basis in now])
        for side in ("U", "V")
    ]
    square = sides[0][0].shape == sides[1][0].shape
    batches = [(torch.cat([sides[0][0], sides[1][0]]), sides[0][1] + sides[1][1])] if square else sides
    overlaps, angles = [], []
    for earlier, bases in batches:
        later = torch.stack([basis[:, :widest] for basis in bases])
        overlaps.append(curve(overlap_curve(earlier, later)))
        last = int(angle_counts[-1])
        angles.append(curve(angle_curve(earlier[..., :last], later[..., :last], angle_counts.tolist())))
    overlap, angle = np.concatenate(overlaps), np.concatenate(angles)  # left of every layer, then right of every layer
    found = []
    for i, (old, new) in enumerate(zip(before, now, strict=True)):
        shared = min(old.directions, new.directions)
        counts, held = counts_for(new.directions, k), angle_counts_for(new.directions, k)
        places = counts[counts <= shared] - 1
        angle_places = np.searchsorted(angle_counts, held[held <= shared])
        found.append(
            Turn(
                tick=old.tick,
                angle_left=angle[i][angle_places],
                angle_right=angle[len(now) + i][angle_places],
                overlap_left=overlap[i][places],
                overlap_right=overlap[len(now) + i][places],
            )
        )
    return found


def changed(weight: Tensor, initial: Tensor, k: int) -> dict[str, Any]:
    """Of W − W₀ (out, in): its spectrum, how much of it stands above noise, and W's intruders."""
    before = initial.detach().to(weight.device).float()
    difference = weight - before
    S, total = singular_values(difference), energy(difference)
    found = Change(
        energy=total, singular_values=curve(S[:k]), stable_rank=stable_rank(S, total), entropy_rank=entropy_rank(S)
    )
    shape = (weight.shape[0], weight.shape[1])
    return {"change": found, "spikes": spikes(S, shape), "intruders": intruders(weight, before, k)}


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
    """How matrices X (b, out, in) lie on bases U and V of K directions."""

    totals: Sequence[float]  # ‖X‖²; not finite where X is not
    concentrations: Sequence[float]
    sketched: bool
    left: Curve  # (b, K)
    right: Curve
    core: Curve
    across_left: Tensor  # (b, K, K) Gram of XV
    across_right: Tensor  # (b, K, K) Gram of XᵀU
    within: Tensor  # (b, K, K) UᵀXV, float64

    def shares(self, i: int, counts: Counts) -> Shares:
        """The i-th matrix's energy curves at `counts`; empty curves for a zero or non-finite one."""
        total = self.totals[i]
        if not 0 < total < float("inf"):
            none = np.zeros(0, np.float32)
            given = 0.0 if total == 0 else None
            return Shares(total=given, concentration=0.0, sketched=False, left=none, right=none, core=none)
        return Shares(
            total=total,
            concentration=self.concentrations[i],
            sketched=self.sketched,
            left=self.left[i][counts - 1],
            right=self.right[i][counts - 1],
            core=self.core[i][counts - 1],
        )

    def rates(self, values: Tensor, counts: Sequence[Counts], k: int) -> list[dict[str, Any]]:
        """Of applied updates, with the weights' singular values (b, K): rotation of k directions, growth of each."""
        S = values.double()
        growth = curve(self.within.diagonal(dim1=-2, dim2=-1) / S.clamp_min(torch.finfo(torch.float32).tiny))
        widths = [min(k, int(held[-1])) for held in counts]
        rotations: dict[int, tuple[float, float]] = {}
        for width in set(widths):
            rows = [i for i, other in enumerate(widths) if other == width]
            cut = (rows, slice(width), slice(width))
            within, head = self.within[cut], S[rows, :width]
            left = rotation(self.across_left[cut], within, head).tolist()
            right = rotation(self.across_right[cut], within.mT, head).tolist()
            rotations |= {i: pair for i, *pair in zip(rows, left, right, strict=True)}  # type: ignore[misc]
        return [
            {"growth": growth[i][held - 1], "rotation_left": rotations[i][0], "rotation_right": rotations[i][1]}
            for i, held in enumerate(counts)
        ]


def spread(matrices: Sequence[Tensor], U: Tensor, V: Tensor, probes: Tensor | None) -> Spread:
    """Project float32 matrices (out, in) of one shape on U (b, out, K) and V (b, in, K).

    With probes (in, h) of standard normals the concentration is sketched, in the same pass; without, exact.
    """
    totals = [energy(X) for X in matrices]
    sound = [0 < total < float("inf") for total in totals]
    X = [matrix if good else torch.zeros_like(matrix) for matrix, good in zip(matrices, sound, strict=True)]
    K = V.shape[-1]
    wide = V if probes is None else torch.cat([V, probes.expand(len(X), -1, -1)], -1)
    image = times(X, wide)
    XV, UX = image[..., :K], torch.stack([block.mT @ matrix for matrix, block in zip(X, U, strict=True)])
    within = UX @ V
    scale = torch.tensor(
        [total if good else 1.0 for total, good in zip(totals, sound, strict=True)], dtype=torch.float64
    )
    left, right, core = fractions(UX, XV, within, scale.to(V.device))
    if probes is None:
        concentrations = [concentration(matrix) if good else 0.0 for matrix, good in zip(X, sound, strict=True)]
    else:
        concentrations = sketched_concentration(image[..., K:]).nan_to_num(0.0).tolist()
    across = gram(XV), gram(UX.mT)
    return Spread(
        totals, concentrations, probes is not None, curve(left), curve(right), curve(core), *across, within.double()
    )
