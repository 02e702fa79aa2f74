"""The spectra of many layers followed from tick to tick: bases kept warm, equal shapes batched, curves handed out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lab.process import heartbeat
from lab.spectral.basis import Basis, pack, unpack
from lab.spectral.curves import change_fields, curve, empty, norm_ratios, project, turns
from lab.spectral.diagnosis import Diagnosis, Engine, Which, angle_counts_for, counts_for
from lab.spectral.iteration import first_effort, iterate
from lab.spectral.noise import left_directions
from lab.spectral.scale import Scale, scale_of
from lab.spectral.spectrum import (
    DEFICIENT,
    NON_FINITE,
    ZERO,
    entropy_rank,
    numerical_rank,
    participation_ratio,
    singular_values,
    spectrum_of,
    stable_rank,
)

TOLERANCE = 3e-3  # radians, estimated; the k directions were found to be off by less than a third of it
LEAST_BLOCKS = 4  # blocks that make a layer's smaller side; a narrower one is decomposed whole, which is cheap anyway
BLOCK = 16  # columns come in multiples of it: 18 cost a processor's matrix unit as much as 32
STALE = 1e-3  # of σ₁; a spectrum further than this from the exact one was followed from a basis that missed something
STALE_EDGE = 2.0**-56  # of the energy; filters above an edge below it leave float32, and no λ_q that counts is there
FRESH = 2  # columns drawn anew at each tick, so that a direction the basis has never seen is found


def width_of_block(k: int, oversample: int) -> int:
    """Columns that are iterated at once."""
    return -(-(k + oversample) // BLOCK) * BLOCK


@dataclass(frozen=True)
class Measurement:
    """The measurement of a layer's weight at one tick."""

    basis: Basis
    residual: float | None  # None for exact
    spectrum: Tensor | None  # the whole, where it was taken


class Tracker:
    """Follows the k strongest directions of every layer it is shown.

    `begin` takes weights (and gradients) before the optimizer's step, `finish` the updates really applied and returns a
    diagnosis per layer. Tensors may be of any floating dtype, wide or tall, on CPU or CUDA; nothing is written to them
    and no global random state is touched. Raises ValueError for a layer smaller than k.
    """

    def __init__(self, *, k: int, oversample: int, engine: Engine, exact_every_n_ticks: int, seed: int) -> None:
        self.k, self.oversample, self.engine = k, oversample, engine
        self.exact_every_n_ticks, self.seed = exact_every_n_ticks, seed
        self.products = 0  # multiplications of a weight with a block, so far; what the warm engine costs
        self._bases: dict[str, Basis] = {}
        self._begun: dict[str, dict[str, Any]] = {}  # the fields of a diagnosis, as far as they are known
        self._without: dict[str, Diagnosis] = {}  # of weights without a direction
        self._drawn: dict[int, Tensor] = {}  # this tick's probes

    def is_exact(self, tick: int) -> bool:
        """True at the ticks whose whole spectrum is taken."""
        return self.engine == "exact" or tick % self.exact_every_n_ticks == 0

    def begin(
        self,
        tick: int,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
        directions: Mapping[str, Tensor] | None = None,
        ratios_at: Mapping[str, int] | None = None,
    ) -> None:
        """Measure weights (out, in) and ∂L/∂W; with `initial` (W₀) also the change since, at exact ticks.

        `directions` spares the `left_directions` of W₀ where they are known; `ratios_at` is the number of directions of
        the seed's norm ratios where it is not k.
        """
        self._begun, self._without, self._drawn = {}, {}, {}
        for name, weight in weights.items():
            if self.k > min(weight.shape):
                raise ValueError(f"k={self.k} directions of {name}, which is {weight.shape[0]}x{weight.shape[1]}.")
        scales = {name: scale_of(weight.detach().float()) for name, weight in weights.items()}
        groups: dict[Any, list[str]] = defaultdict(list)
        for name, weight in weights.items():
            # Curves are float32: a weight whose norm is beyond that has none.
            if scales[name].sound and scales[name].energy < torch.finfo(torch.float32).max ** 2:
                # A first look starts from noise and must not slow down those that have a basis.
                groups[weight.shape, weight.device, name in self._bases].append(name)
            else:
                reason = ZERO if scales[name].total == 0 else NON_FINITE
                self._without[name] = empty(tick, _shape(weight), self.engine, reason, self.k)
        measurements: dict[str, Measurement] = {}
        for names in groups.values():
            group = [weights[name].detach().float() for name in names]
            measured = self._decompose(tick, names, group, [scales[name] for name in names])
            measurements |= zip(names, measured, strict=True)
        turn_fields = self._turn_fields(tick, measurements)
        for name, measurement in measurements.items():
            heartbeat.beat()
            weight = weights[name].detach()
            fields = turn_fields.get(name, {}) | self._spectrum_fields(measurement, scales[name].energy)
            if self.is_exact(tick) and initial and name in initial:
                strongest = measurement.basis.U[:, : min(self.k, measurement.basis.directions)]
                known = left_directions(initial[name].to(weight.device)) if directions is None else directions[name]
                fields |= change_fields(weight.float(), initial[name], known, strongest, self.k)
            if self.engine == "exact":
                before, gradient = self._bases.get(name), (gradients or {}).get(name)
                fields["norm_ratios"] = norm_ratios(
                    weight.float(), measurement.basis, before, gradient, (ratios_at or {}).get(name, self.k)
                )
            self._begun[name] = {"tick": tick, "shape": _shape(weight), "engine": self.engine, "k": self.k, **fields}
            self._bases[name] = measurement.basis
        self._add(gradients or {}, "gradient")

    def finish(
        self, updates: Mapping[str, Tensor] | None = None, momenta: Mapping[str, Tensor] | None = None
    ) -> dict[str, Diagnosis]:
        """The diagnoses of the tick begun, with the updates W_after − W_before of the one step added.

        `momenta` are the optimizer's first moments (out, in), of the layers for which it holds one.
        """
        self._add(updates or {}, "update")
        self._add(momenta or {}, "momentum")
        done = self._without | {name: Diagnosis(**fields) for name, fields in self._begun.items()}
        self._begun, self._without, self._drawn = {}, {}, {}
        return done

    def tick(
        self,
        tick: int,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None = None,
        updates: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Diagnosis]:
        """`begin` and `finish` at once, where the update is known already."""
        self.begin(tick, weights, gradients, initial)
        return self.finish(updates)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: loads with `weights_only=True`; the ticks that follow are the same bit for bit."""
        return {name: pack(basis) for name, basis in self._bases.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left."""
        self._bases = {name: unpack(packed) for name, packed in state.items()}

    def _turn_fields(self, tick: int, measurements: Mapping[str, Measurement]) -> dict[str, dict[str, Any]]:
        """The turns of layers since their last tick and, at exact ticks, since their first."""
        known = [name for name in measurements if name in self._bases]
        before, now = [self._bases[name] for name in known], [measurements[name].basis for name in known]
        fields = {name: {"previous": turn} for name, turn in zip(known, turns(before, now, self.k), strict=True)}
        if self.is_exact(tick):
            first = turns([basis.first or basis for basis in before], now, self.k)
            for name, turn in zip(known, first, strict=True):
                fields[name]["first"] = turn
        return fields

    def _spectrum_fields(self, measurement: Measurement, total: float) -> dict[str, Any]:
        """The fields that a weight's own spectrum fills."""
        directions, whole = measurement.basis.directions, measurement.spectrum
        held = measurement.basis.S[: self.k + self.oversample] if whole is None else whole
        return {
            "reason": DEFICIENT if directions < self.k else None,
            "counts": counts_for(directions, self.k),
            "angle_counts": angle_counts_for(directions, self.k),
            "energy": total,
            "singular_values": curve(held),
            "whole": whole is not None,
            "residual": measurement.residual,
            "stable_rank": stable_rank(held, total),
            "entropy_rank": None if whole is None else entropy_rank(whole),
            "participation": None if whole is None else participation_ratio(whole),
        }

    def _decompose(
        self, tick: int, names: Sequence[str], weights: Sequence[Tensor], scales: Sequence[Scale]
    ) -> list[Measurement]:
        """Measure weights of one shape, of these scales, by the engine chosen."""
        if self.engine == "exact":
            # Raw signs: no measure sees them, but the seed's float32 arccos does, in its last bits.
            exact = [spectrum_of(weight, signs=False) for weight in weights]
            return [
                self._measure(tick, name, s.U, s.S, s.V, spectrum=s.S) for name, s in zip(names, exact, strict=True)
            ]
        q, n = width_of_block(self.k, self.oversample), min(weights[0].shape)
        if n < LEAST_BLOCKS * q:
            q, exact = self.k + self.oversample, [spectrum_of(weight) for weight in weights]
            return [
                self._measure(
                    tick, name, s.U[:, :q], s.S[:q], s.V[:, :q], spectrum=s.S if self.is_exact(tick) else None
                )
                for name, s in zip(names, exact, strict=True)
            ]
        scaled = [scale.down(weight) for scale, weight in zip(scales, weights, strict=True)]
        wide = weights[0].shape[0] < weights[0].shape[1]  # then on the left, which is the smaller side
        upright = [weight.mT for weight in scaled] if wide else scaled
        start = self._guess(tick, names, weights[0], q, "U" if wide else "V")
        known = [self._bases.get(name) for name in names]
        effort = [basis.depth if basis and basis.depth else first_effort(n, weights[0].device) for basis in known]
        last = [float(s.down(basis.S[-1])) ** 2 if basis else 0.0 for s, basis in zip(scales, known, strict=True)]
        edges = [
            edge if STALE_EDGE * scale.total < edge <= scale.total / q else scale.total / n
            for edge, scale in zip(last, scales, strict=True)
        ]
        iterated = iterate(upright, start, edges, self.k, effort, TOLERANCE)
        left, right = (iterated.V, iterated.U) if wide else (iterated.U, iterated.V)
        self.products += iterated.products
        measurements, residuals = [], iterated.residual.tolist()
        for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
            U, S, V = left[i], scales[i].up(iterated.S[i]), right[i]
            residual: float | None = residuals[i]
            whole = singular_values(weight) if self.is_exact(tick) else None
            if whole is not None and float((whole[: self.k] - S[: self.k]).abs().max()) > STALE * float(whole[0]):
                exact_one = spectrum_of(weight, q)
                U, S, V, residual = exact_one.U, exact_one.S, exact_one.V, None
            measurements.append(self._measure(tick, name, U, S, V, residual, iterated.effort[i], whole))
        return measurements

    def _measure(
        self,
        tick: int,
        name: str,
        U: Tensor,
        S: Tensor,
        V: Tensor,
        residual: float | None = None,
        depth: int = 0,
        spectrum: Tensor | None = None,
    ) -> Measurement:
        most = len(S) if self.engine == "exact" else self.k
        before = self._bases.get(name)
        first = None
        if before is not None:
            kept = self.k if self.engine == "warm" else before.U.shape[1]
            first = before.first or replace(before, U=before.U[:, :kept].clone(), V=before.V[:, :kept].clone())
        directions = min(most, numerical_rank(S, (len(U), len(V))))
        return Measurement(Basis(tick, U, S, V, directions, first, depth), residual, spectrum)

    def _guess(self, tick: int, names: Sequence[str], weight: Tensor, q: int, side: str) -> Tensor:
        """The starting guess: last tick's directions on the smaller side, the last few drawn anew; (b, d, q)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + tick)
        known = all(name in self._bases for name in names)
        drawn = torch.randn(min(weight.shape), FRESH if known else q, generator=generator).to(weight.device)
        drawn /= drawn.shape[0] ** 0.5
        if not known:
            return drawn.expand(len(names), -1, -1)
        kept = torch.stack([getattr(self._bases[name], side)[:, : q - FRESH] for name in names])
        return torch.cat([kept, drawn.expand(len(names), -1, -1)], -1)

    def _add(self, matrices: Mapping[str, Tensor], which: Which) -> None:
        """Put the energies of gradients, momenta or applied updates, and an update's rates, into the fields."""
        groups: dict[int, list[str]] = defaultdict(list)
        for name, matrix in matrices.items():
            if name in self._begun and self._bases[name].directions:
                groups[self.k if self.engine == "warm" else min(matrix.shape)].append(name)
        for columns, names in groups.items():
            bases = [self._bases[name] for name in names]
            counts = [self._begun[name]["counts"] for name in names]
            projections = project(
                [matrices[name] for name in names],
                [basis.U[:, :columns] for basis in bases],
                [basis.V[:, :columns] for basis in bases],
                None if self.is_exact(self._begun[names[0]]["tick"]) else self._probes,
                rates=which == "update",
            )
            for i, name in enumerate(names):
                self._begun[name][which] = projections.shares(i, counts[i])
            if which == "update":
                rates = projections.rates(torch.stack([basis.S[:columns] for basis in bases]), counts, self.k)
                for i, name in enumerate(names):
                    self._begun[name] |= rates[i] if self._begun[name][which].total else {}

    def _probes(self, width: int) -> Tensor:
        """This tick's sixteen columns of standard normals, (width, 16)."""
        if width not in self._drawn:
            tick = next(iter(self._begun.values()))["tick"]
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + tick + 500_009)
            self._drawn[width] = torch.randn(width, 16, generator=generator)
        return self._drawn[width]


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]
