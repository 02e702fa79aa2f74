"""Diagnosis of a layer at one tick, in plain numbers and float32 arrays. No torch: a policy and a replay read it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lab.spectral.chance import Side, chance, z_score

Engine = Literal["warm", "exact"]
Curve = NDArray[np.float32]
Counts = NDArray[np.int32]
Which = Literal["gradient", "momentum", "update"]
Reference = Literal["previous", "first"]


class NotHeld(ValueError):
    """A number was asked for that was not measured; the message says what was."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The energy of one X, a gradient, a momentum or an applied update, on the first j directions, j in `counts`."""

    total: float | None  # ‖X‖_F²; None where X is not finite. Without a positive total the curves are empty
    concentration: float  # Σ wᵢ², wᵢ = σᵢ²/Σσ² of X
    sketched: bool  # True where `concentration` is an estimate
    left: Curve  # (counts,) 0 to 1
    right: Curve
    core: Curve


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The turn of the first j directions since an earlier tick; shorter where that tick had fewer directions."""

    tick: int  # the earlier tick
    angle_left: Curve  # (angle_counts,) largest principal angle, radians
    angle_right: Curve
    overlap_left: Curve  # (counts,) mean squared cosine, 0 to 1
    overlap_right: Curve


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of the weight by training so far: W − W₀."""

    energy: float  # ‖W − W₀‖_F²
    singular_values: Curve  # the k strongest, descending
    stable_rank: float | None  # None where nothing has changed
    entropy_rank: float | None


@dataclass(frozen=True, kw_only=True)
class NormRatios:
    """Seed 001's own numbers, float32, by its own formulas: to show what its rule saw, not to decide anything new."""

    k: int
    angle: float | None  # arccos of the smallest cosine, radians; floors near 5e-4
    principal: float | None  # ‖U_kU_kᵀG‖_F/‖G‖_F
    minor: float | None  # ‖U_mU_mᵀG‖_F/‖G‖_F, U_m the other left singular vectors
    reconstruction_error: float  # ‖W − U_kΣ_kV_kᵀ‖_F/‖W‖_F


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One layer at one tick. Curves hold the values for the first j directions, j in `counts` or `angle_counts`."""

    tick: int
    shape: tuple[int, int]  # (out, in)
    engine: Engine
    reason: str | None  # zero_matrix, rank_deficient, non_finite; None where all is well
    k: int  # principal directions asked for
    counts: Counts  # ascending; ends at the last direction that means anything
    angle_counts: Counts  # the subset at which angles and rotations are held
    energy: float | None  # ‖W‖_F²; None where W is not finite
    singular_values: Curve  # the strongest, descending
    whole: bool  # True where these are all singular values
    residual: float | None  # largest ‖Wv − σu‖/σ over the k directions, an upper bound; None for exact
    stable_rank: float | None
    entropy_rank: float | None  # needs the whole spectrum, as does the next
    participation: float | None
    previous: Turn | None = None  # against the layer's previous tick
    first: Turn | None = None  # against its first tick; at exact ticks
    gradient: Shares | None = None
    momentum: Shares | None = None  # the optimizer's first moment after the step; None where it holds none
    update: Shares | None = None
    rotation_left: float | None = None  # of the k directions by the applied update, first order, radians per step
    rotation_right: float | None = None
    growth: Curve | None = None  # (counts,) uᵀΔWv/σ of direction j, relative change per step
    change: Change | None = None  # at exact ticks, as the next two
    spikes: int | None = None  # of W − W₀
    intruders: int | None = None  # among the k strongest left directions, against W₀'s
    norm_ratios: NormRatios | None = None

    @property
    def directions(self) -> int:
        """The greatest k with exact curves: the number of directions that were tracked and mean something."""
        return int(self.counts[-1]) if len(self.counts) else 0

    def at(self, curve: Curve, k: int, counts: Counts | None = None) -> float | None:
        """The value of a curve at k directions; None where these do not all exist, NotHeld where k was not recorded."""
        if self.reason is not None and self.directions < k <= self.k:
            return None
        held = self.counts if counts is None else counts
        place = int(np.searchsorted(held, k))
        if place == len(held) or held[place] != k:
            raise NotHeld(f"k={k} was not recorded; tick {self.tick} of this layer holds {_list(held)}.")
        return float(curve[place]) if place < len(curve) else None

    def tail_error(self, k: int) -> float | None:
        """‖W − W_k‖_F/‖W‖_F, from singular values alone; None for a zero or non-finite weight."""
        if self.energy is None or self.energy == 0:
            return None
        if k > len(self.singular_values):
            raise NotHeld(f"k={k} was not recorded; this tick holds {len(self.singular_values)} singular values.")
        kept = float(np.square(self.singular_values[:k].astype(np.float64)).sum())
        return float(np.sqrt(max(0.0, 1 - kept / self.energy)))

    def directions_for(self, error: float) -> int | None:
        """The smallest k whose tail error is below `error`; None where the singular values held do not reach it."""
        if not self.energy:
            return None
        kept = np.square(self.singular_values.astype(np.float64)).cumsum()
        reached = np.flatnonzero(1 - kept / self.energy < error * abs(error))
        return int(reached[0]) + 1 if len(reached) else None

    def gap(self, k: int) -> float | None:
        """(σ_k − σ_{k+1})/σ₁; None for a zero weight or where σ_{k+1} is not held."""
        if k >= len(self.singular_values) or self.singular_values[0] == 0:
            return None
        return float((self.singular_values[k - 1] - self.singular_values[k]) / self.singular_values[0])

    def snapped(self, least: float) -> int | None:
        """The k among `angle_counts` with the widest gap, or None where even that is below `least` (of σ₁)."""
        gaps = {int(k): gap for k in self.angle_counts if (gap := self.gap(int(k))) is not None}
        best = max(gaps, key=lambda k: gaps[k], default=None)
        return best if best is not None and gaps[best] >= least else None

    def shares(self, which: Which) -> Shares | None:
        """The energies of the gradient, the momentum or the update; None where it was not measured."""
        return {"gradient": self.gradient, "momentum": self.momentum, "update": self.update}[which]

    def fraction(self, which: Which, side: Side, k: int) -> float | None:
        """The share of X's energy on one side of the first k directions; None where undefined."""
        shares = self.shares(which)
        if shares is None or not shares.total:
            return None
        if side != "either":
            return self.at({"left": shares.left, "right": shares.right, "core": shares.core}[side], k)
        left, right, core = self.at(shares.left, k), self.at(shares.right, k), self.at(shares.core, k)
        return None if left is None or right is None or core is None else left + right - core

    def chance(self, side: Side, k: int) -> float:
        """The fraction that k unrelated directions would catch."""
        return chance(side, k, self.shape)

    def z(self, which: Which, side: Side, k: int) -> float | None:
        """The fraction's distance from chance in standard deviations of the null; None where undefined."""
        fraction, shares = self.fraction(which, side, k), self.shares(which)
        if fraction is None or shares is None:
            return None
        return z_score(side, fraction, k, self.shape, shares.concentration)

    def angle(self, k: int, since: Reference = "previous") -> float | None:
        """The larger of the left and right largest angles of the first k directions, radians; None at a first tick."""
        turn = self.previous if since == "previous" else self.first
        if turn is None:
            return None
        left = self.at(turn.angle_left, k, self.angle_counts)
        right = self.at(turn.angle_right, k, self.angle_counts)
        return None if left is None or right is None else max(left, right)

    def overlap(self, k: int, since: Reference = "previous") -> float | None:
        """The smaller of the left and right overlaps of the first k directions, 0 to 1; None at a first tick."""
        turn = self.previous if since == "previous" else self.first
        if turn is None:
            return None
        left, right = self.at(turn.overlap_left, k), self.at(turn.overlap_right, k)
        return None if left is None or right is None else min(left, right)

    @property
    def rotation(self) -> float | None:
        """The larger of the left and right rotations of the k directions by the update, radians per step."""
        if self.rotation_left is None or self.rotation_right is None:
            return None
        return max(self.rotation_left, self.rotation_right)


def counts_for(directions: int, k: int, most: int = 64) -> Counts:
    """The j at which curves are held: all up to 16, then log-spaced to `directions`, `most` or fewer, and always k."""
    if directions <= most:
        return np.arange(1, directions + 1, dtype=np.int32)
    tail = np.geomspace(17, directions, most - 17).round()
    return np.unique(np.concatenate([np.arange(1, 17), tail, [k]])).astype(np.int32)


def angle_counts_for(directions: int, k: int) -> Counts:
    """The j at which angles are held: powers of two to 64, and k; each costs a small eigenvalue problem per side."""
    powers = [2**i for i in range(min(7, directions.bit_length()))]
    return np.array(sorted({*powers, *([k] if k <= directions else [])}), dtype=np.int32)


def _list(counts: Counts) -> str:
    if len(counts) == 0:
        return "no direction at all"
    if int(counts[-1]) == len(counts):
        return f"every k up to {counts[-1]}"
    return f"k in {', '.join(str(int(j)) for j in counts)}"
