"""Curves of a diagnosis, float32, from bases and matrices."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
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
from lab.spectral.energy import concentration, sketched_concentration
from lab.spectral.noise import intruders, spikes
from lab.spectral.scale import LEAST, MOST, Scale, energy, extreme_scale_of, scale_of, squares
from lab.spectral.spectrum import entropy_rank, singular_values, stable_rank
from lab.spectral.subspace import gram, leading_angles, leading_overlaps, leading_sums, rotation, split


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
    """The turn of each layer's directions between two ticks, as far as both ticks have them."""
    pairs = [(getattr(old, side), getattr(new, side)) for side in "UV" for old, new in zip(before, now, strict=True)]
    directions = [new.directions for new in now] * 2
    groups: dict[Any, list[int]] = defaultdict(list)  # left of every layer, then right of every layer
    for place, (_, later) in enumerate(pairs):
        groups[len(later), directions[place], later.device].append(place)
    overlaps: dict[int, Curve] = {}
    angles: dict[int, Curve] = {}
    small: dict[tuple[int, ...], list[tuple[list[int], Tensor, Tensor]]] = defaultdict(list)
    for (_, widest, _), places in groups.items():
        earlier = torch.stack([pairs[place][0][:, :widest] for place in places])
        later = torch.stack([pairs[place][1][:, :widest] for place in places])
        last = int(angle_counts_for(widest, k)[-1])
        M, residual = split(earlier[..., :last], later[..., :last])
        overlaps |= zip(places, curve(leading_overlaps(earlier.mT @ later if widest > last else M)), strict=True)
        small[tuple(angle_counts_for(widest, k).tolist())].append((places, M.double().cpu(), gram(residual).cpu()))
    for counts, parts in small.items():
        M, sines = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
        places = [place for part in parts for place in part[0]]
        angles |= zip(places, curve(leading_angles(M, sines, counts)), strict=True)
    return [
        _turn(old, new, k, [(angles[i], overlaps[i]) for i in (place, place + len(now))])
        for place, (old, new) in enumerate(zip(before, now, strict=True))
    ]


def _turn(old: Directions, new: Directions, k: int, sides: Sequence[tuple[Curve, Curve]]) -> Turn:
    shared = min(old.directions, new.directions)
    counts, held = counts_for(new.directions, k), angle_counts_for(new.directions, k)
    (angle_left, overlap_left), (angle_right, overlap_right) = sides
    places, number = counts[counts <= shared] - 1, int((held <= shared).sum())
    return Turn(
        tick=old.tick,
        angle_left=angle_left[:number],
        angle_right=angle_right[:number],
        overlap_left=overlap_left[places],
        overlap_right=overlap_right[places],
    )


def change_fields(weight: Tensor, initial: Tensor, known: Tensor, U: Tensor, k: int) -> dict[str, Any]:
    """The fields on W − W₀ (out, in): its spectrum, the spikes above noise, and the intruders among W's U (out, ≤ k).

    `known` are W₀'s `left_directions`. Nothing, where the difference is not finite.
    """
    difference = weight - initial.detach().to(weight.device).float()
    total = energy(difference)
    if not math.isfinite(total):
        return {}
    S = singular_values(difference)
    change = Change(
        energy=total, singular_values=curve(S[:k]), stable_rank=stable_rank(S, total), entropy_rank=entropy_rank(S)
    )
    shape = (weight.shape[0], weight.shape[1])
    return {"change": change, "spikes": spikes(S, shape), "intruders": intruders(U, known)}


def norm_ratios(
    weight: Tensor, now: Directions, before: Directions | None, gradient: Tensor | None, k: int
) -> NormRatios:
    """Seed 001's metrics by its own formulas, in its own order of operations, float32 throughout.

    On matrices of extreme scale, whose squares are no float32 numbers, after a power of two that leaves the ratios.
    """
    U, norm = now.U, torch.linalg.norm
    U_k, U_m = U[:, :k], U[:, k:]
    angle = principal = minor = None
    if before is not None:
        cosines = torch.linalg.svdvals(before.U[:, :k].mT @ U_k)
        angle = float(torch.acos(torch.clamp(cosines.min(), -1.0, 1.0)))
    if gradient is not None and (scale := scale_of(gradient.detach().float())).sound:
        G = scale.down(gradient.detach().float())
        principal = float(norm(U_k @ (U_k.mT @ G)) / norm(G))
        minor = float(norm(U_m @ (U_m.mT @ G)) / norm(G))
    scale = scale_of(weight)
    weight, S = scale.down(weight), scale.down(now.S[:k])
    kept = U_k @ torch.diag(S) @ now.V[:, :k].mT
    error = float(norm(weight - kept) / norm(weight))
    return NormRatios(k=k, angle=angle, principal=principal, minor=minor, reconstruction_error=error)


@dataclass(frozen=True)
class Projections:
    """Projections of b matrices X (out, in) of any shapes on bases U, V of K directions; small tensors on the CPU."""

    totals: Sequence[float]  # ‖X‖²; not finite where X is not
    concentrations: Sequence[float]
    sketched: bool
    left: Curve  # (b, K)
    right: Curve
    core: Curve
    within: Tensor  # (b, K, K) UᵀXV, float64
    across: tuple[Tensor, Tensor] | None  # (b, K, K) Grams of XV and of XᵀU, float64; where rates are wanted

    def shares(self, i: int, counts: Counts) -> Shares:
        """The i-th matrix's energy curves at `counts`; empty curves for a zero or non-finite one."""
        total = self.totals[i]
        if not 0 < total < math.inf:
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
        assert self.across is not None
        S = values.cpu().double()
        growth = curve(self.within.diagonal(dim1=-2, dim2=-1) / S.clamp_min(torch.finfo(torch.float32).tiny))
        widths = [min(k, int(held[-1])) for held in counts]
        rotations: dict[int, tuple[float, float]] = {}
        for width in set(widths):
            rows = [i for i, other in enumerate(widths) if other == width]
            left, right, within = (grams[rows, :width, :width] for grams in (*self.across, self.within))
            head = S[rows, :width]
            pairs = rotation(torch.cat([left, right]), torch.cat([within, within.mT]), torch.cat([head, head]))
            turned = pairs.view(2, len(rows)).T.tolist()
            rotations |= {i: (of_left, of_right) for i, (of_left, of_right) in zip(rows, turned, strict=True)}
        return [
            {"growth": growth[i][held - 1], "rotation_left": rotations[i][0], "rotation_right": rotations[i][1]}
            for i, held in enumerate(counts)
        ]


def project(
    matrices: Sequence[Tensor],
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    probes: Callable[[int], Tensor] | None,
    rates: bool,
) -> Projections:
    """Project matrices (out, in) on directions U (out, K) and V (in, K) of each, in float32.

    `probes` gives (in, h) of standard normals, by which the concentration is sketched in the same pass; without, it is
    exact. `rates` keeps what `Projections.rates` needs.
    """
    b, K = len(matrices), V[0].shape[1]
    left, right = torch.zeros(b, K, dtype=torch.float64), torch.zeros(b, K, dtype=torch.float64)
    grams = torch.zeros(3 if rates else 1, b, K, K, dtype=torch.float64)  # UᵀXV, of XV, of XᵀU
    scales, concentrations = [Scale(0, 0.0)] * b, [0.0] * b
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        groups[matrix.shape, matrix.device].append(place)
    for ((m, n), device), places in groups.items():
        lefts, rights = (torch.stack([side[place] for place in places]) for side in (U, V))
        wide = rights if probes is None else torch.cat([rights, probes(n).to(device).expand(len(places), -1, -1)], -1)
        image, UX = rights.new_empty(len(places), m, wide.shape[-1]), rights.new_empty(len(places), K, n)
        norms = []
        for i, place in enumerate(places):  # all of one matrix before the next, while it is in the cache
            X = matrices[place].detach().float()
            norms.append(squares(X))
            _project_one(X, wide[i], lefts[i], image[i], UX[i])
        for i, (place, total) in enumerate(zip(places, torch.stack(norms).tolist(), strict=True)):
            if LEAST <= total <= MOST:
                scales[place] = Scale(0, total)
                continue
            X = matrices[place].detach().float()
            scales[place] = extreme_scale_of(X)
            _project_one(scales[place].down(X), wide[i], lefts[i], image[i], UX[i])
        XV = image[..., :K]
        grams[0, places] = (UX @ rights).double().cpu()
        left[places] = torch.linalg.vector_norm(UX, dim=-1).double().square().cpu()
        right[places] = torch.linalg.vector_norm(XV, dim=-2).double().square().cpu()
        if rates:
            grams[1, places], grams[2, places] = gram(XV).cpu(), gram(UX.mT).cpu()
        if probes is None:
            sketches = [
                concentration(matrices[place].detach().float()) if scales[place].sound else 0.0 for place in places
            ]
        else:
            sketches = sketched_concentration(image[..., K:]).tolist()
        for place, value in zip(places, sketches, strict=True):
            concentrations[place] = value
    sound = torch.tensor([scale.sound for scale in scales])
    totals = torch.tensor([scale.total for scale in scales], dtype=torch.float64).where(sound, 1.0)[:, None]
    grams = grams.where(sound[:, None, None], 0.0)
    left, right = (side.where(sound[:, None], 0.0).cumsum(-1) / totals for side in (left, right))
    core = leading_sums(grams[0].square()) / totals
    for i, scale in enumerate(scales):
        grams[0, i], grams[1:, i] = scale.up(grams[0, i]), scale.up(scale.up(grams[1:, i]))
    across = (grams[1], grams[2]) if rates else None
    energies = [scale.energy for scale in scales]
    shares = curve(left), curve(right), curve(core)
    return Projections(energies, concentrations, probes is not None, *shares, grams[0], across)


def _project_one(X: Tensor, wide: Tensor, left: Tensor, image: Tensor, UX: Tensor) -> None:
    torch.mm(X, wide, out=image)
    torch.mm(left.mT, X, out=UX)
