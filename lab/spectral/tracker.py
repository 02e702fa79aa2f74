"""The spectra of many layers followed from tick to tick: bases kept warm, equal shapes batched, curves handed out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lab.spectral.curves import changed, curve, empty, norm_ratios, spread, turns
from lab.spectral.diagnosis import Diagnosis, Engine, Which, angle_counts_for, counts_for
from lab.spectral.iteration import iterate
from lab.spectral.spectrum import (
    DEFICIENT,
    NON_FINITE,
    ZERO,
    decompose,
    energy,
    entropy_rank,
    numerical_rank,
    participation_ratio,
    singular_values,
    stable_rank,
)

RESIDUAL = 1e-3  # of σ; leaves singular values within 1e-4 and angles within 1e-3 rad on a NanoChat's weights
FIRST_DEPTH, MOST_DEPTH = 3, 6  # of the block Krylov space; then what the layer's last residual asks for
BLOCK = 16  # columns come in multiples of it: 18 cost a processor's matrix unit as much as 32
STALE = 1e-3  # of σ₁; a spectrum further than this from the exact one was followed from a basis that missed something
FRESH = 2  # columns drawn anew at each tick, so that a direction the basis has never seen is found


@dataclass(frozen=True)
class Basis:
    """What is kept of one layer between ticks."""

    tick: int
    U: Tensor  # (out, q), strongest direction first
    S: Tensor  # (q,)
    V: Tensor  # (in, q)
    directions: int  # how many of the first k mean something
    first: "Basis | None" = None  # of the first tick with a direction, k columns; None while this is it
    depth: int = FIRST_DEPTH


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
        self._begun: dict[str, Diagnosis] = {}

    def is_exact(self, tick: int) -> bool:
        """True at the ticks whose whole spectrum is taken."""
        return self.engine == "exact" or tick % self.exact_every_n_ticks == 0

    def begin(
        self,
        tick: int,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Measure weights (out, in) and ∂L/∂W; with `initial` (W₀) also the change since, at exact ticks."""
        self._begun, energies = {}, {}
        groups: dict[Any, list[str]] = defaultdict(list)
        for name, weight in weights.items():
            if self.k > min(weight.shape):
                raise ValueError(f"k={self.k} directions of {name}, which is {weight.shape[0]}x{weight.shape[1]}.")
            total = energies[name] = energy(weight.detach())
            if not 0 < total < float("inf"):
                reason = ZERO if total == 0 else NON_FINITE
                self._begun[name] = empty(tick, _shape(weight), self.engine, reason, self.k)
                continue
            # A first look starts from noise and must not slow down those that have a basis.
            groups[weight.shape, weight.device, name in self._bases].append(name)
        for names in groups.values():
            chosen = [weights[name].detach().float() for name in names]
            self._measure(tick, names, chosen, [energies[name] for name in names], gradients or {}, initial or {})

    def finish(
        self, updates: Mapping[str, Tensor] | None = None, momenta: Mapping[str, Tensor] | None = None
    ) -> dict[str, Diagnosis]:
        """The diagnoses of the tick begun, with the updates W_after − W_before of the one step added.

        `momenta` are the optimizer's first moments (out, in), of the layers for which it holds one.
        """
        done, self._begun = self._begun, {}
        self._add(done, updates or {}, "update")
        self._add(done, momenta or {}, "momentum")
        return done

    def _add(self, done: dict[str, Diagnosis], matrices: Mapping[str, Tensor], which: Which) -> None:
        """Put the energies of the matrices, and an update's rates, into the diagnoses."""
        groups: dict[Any, list[str]] = defaultdict(list)
        for name, matrix in matrices.items():
            if done[name].directions:
                groups[matrix.shape, matrix.device].append(name)
        for names in groups.values():
            chosen = [matrices[name].detach().float() for name in names]
            bases = [self._bases[name] for name in names]
            for name, fields in zip(names, self._shares(chosen, bases, names, done, which), strict=True):
                done[name] = replace(done[name], **fields)

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
        return {name: _packed(basis) for name, basis in self._bases.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left."""
        self._bases = {name: _unpacked(packed) for name, packed in state.items()}

    def _measure(
        self,
        tick: int,
        names: Sequence[str],
        weights: Sequence[Tensor],
        energies: Sequence[float],
        gradients: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
    ) -> None:
        shape = _shape(weights[0])
        found, residuals, spectra = self._decompose(tick, names, weights)
        known = [i for i, name in enumerate(names) if name in self._bases]
        turned: dict[int, dict[str, Any]] = defaultdict(dict)
        if known:
            before, now = [self._bases[names[i]] for i in known], [found[i] for i in known]
            for i, turn in zip(known, turns(before, now, self.k), strict=True):
                turned[i]["previous"] = turn
            first = [basis.first or basis for basis in before] if self.is_exact(tick) else []
            for i, turn in zip(known, turns(first, now, self.k) if first else [], strict=False):
                turned[i]["first"] = turn
        for position, (name, weight) in enumerate(zip(names, weights, strict=True)):
            basis = found[position]
            counts = counts_for(basis.directions, self.k)
            angle_counts = angle_counts_for(basis.directions, self.k)
            total, whole = energies[position], spectra[position]
            held = basis.S[: self.k + self.oversample] if whole is None else whole
            fields = turned[position]
            if self.is_exact(tick) and name in initial:
                fields |= changed(weight, initial[name], self.k)
            if self.engine == "exact":
                fields["norm_ratios"] = norm_ratios(weight, basis, self._bases.get(name), gradients.get(name), self.k)
            self._begun[name] = Diagnosis(
                tick=tick,
                shape=shape,
                engine=self.engine,
                reason=DEFICIENT if basis.directions < self.k else None,
                k=self.k,
                counts=counts,
                angle_counts=angle_counts,
                energy=total,
                singular_values=curve(held),
                whole=whole is not None,
                residual=residuals[position],
                stable_rank=stable_rank(held, total),
                entropy_rank=None if whole is None else entropy_rank(whole),
                participation=None if whole is None else participation_ratio(whole),
                **fields,
            )
            self._bases[name] = basis
        self._add(self._begun, {name: gradients[name] for name in names if name in gradients}, "gradient")

    def _decompose(
        self, tick: int, names: Sequence[str], weights: Sequence[Tensor]
    ) -> tuple[list[Basis], list[float | None], list[Tensor | None]]:
        """A basis, its residual and, where taken, the whole spectrum per layer, by the engine chosen."""
        if self.engine == "exact":
            # Raw signs: no measure sees them, but the seed's float32 arccos does, in its last bits.
            exact = [decompose(weight, signs=False) for weight in weights]
            bases = [
                self._basis(tick, name, spectrum.U, spectrum.S, spectrum.V, FIRST_DEPTH)
                for name, spectrum in zip(names, exact, strict=True)
            ]
            return bases, [None] * len(names), [spectrum.S for spectrum in exact]
        q = -(-(self.k + self.oversample) // BLOCK) * BLOCK
        if min(weights[0].shape) < 4 * q:  # a block would be a large part of the whole, which is cheap anyway
            return self._small(tick, names, weights)
        depth = max(self._bases[name].depth if name in self._bases else FIRST_DEPTH for name in names)
        wide = weights[0].shape[0] < weights[0].shape[1]  # then on the left, which is the smaller side
        upright = [weight.mT for weight in weights] if wide else weights
        start = self._guess(tick, names, weights[0], q, "U" if wide else "V")
        result = iterate(upright, start, self.k, depth, RESIDUAL)
        left, right = (result.V, result.U) if wide else (result.U, result.V)
        self.products += result.products
        bases, residuals, spectra = [], [], []
        reached, after_one = result.residual.tolist(), result.first_residual.tolist()
        for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
            U, S, V = left[i], result.S[i], right[i]
            residual: float | None = reached[i]
            whole = singular_values(weight) if self.is_exact(tick) else None
            if whole is not None and float((whole[: self.k] - S[: self.k]).abs().max()) > STALE * float(whole[0]):
                exact_one = decompose(weight, q)
                U, S, V, residual = exact_one.U, exact_one.S, exact_one.V, None
            bases.append(self._basis(tick, name, U, S, V, _next_depth(depth, after_one[i])))
            residuals.append(residual)
            spectra.append(whole)
        return bases, residuals, spectra

    def _small(
        self, tick: int, names: Sequence[str], weights: Sequence[Tensor]
    ) -> tuple[list[Basis], list[float | None], list[Tensor | None]]:
        """The warm engine's answer by full decompositions."""
        exact = [decompose(weight) for weight in weights]
        q = self.k + self.oversample
        bases = [
            self._basis(tick, name, found.U[:, :q], found.S[:q], found.V[:, :q], FIRST_DEPTH)
            for name, found in zip(names, exact, strict=True)
        ]
        spectra = [found.S if self.is_exact(tick) else None for found in exact]
        return bases, [None] * len(names), spectra

    def _basis(self, tick: int, name: str, U: Tensor, S: Tensor, V: Tensor, depth: int) -> Basis:
        most = len(S) if self.engine == "exact" else self.k
        before = self._bases.get(name)
        first = None
        if before is not None:
            kept = self.k if self.engine == "warm" else before.U.shape[1]
            first = before.first or replace(before, U=before.U[:, :kept].clone(), V=before.V[:, :kept].clone())
        return Basis(tick, U, S, V, min(most, numerical_rank(S, (len(U), len(V)))), first, depth)

    def _guess(self, tick: int, names: Sequence[str], weight: Tensor, q: int, side: str) -> Tensor:
        """Where to start: last tick's directions on the smaller side, the last few drawn anew; (b, d, q)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + tick)
        known = all(name in self._bases for name in names)
        drawn = torch.randn(min(weight.shape), FRESH if known else q, generator=generator).to(weight.device)
        if not known:
            return torch.linalg.qr(drawn).Q.expand(len(names), -1, -1).clone()
        kept = torch.stack([getattr(self._bases[name], side)[:, : q - FRESH] for name in names])
        new = drawn - kept @ (kept.mT @ drawn)
        new = torch.linalg.qr(new - kept @ (kept.mT @ new)).Q
        return torch.cat([kept, new], -1)

    def _shares(
        self,
        matrices: Sequence[Tensor],
        bases: Sequence[Basis],
        names: Sequence[str],
        diagnoses: Mapping[str, Diagnosis],
        which: Which,
    ) -> list[dict[str, Any]]:
        """The fields that gradients, momenta or applied updates fill."""
        probes = None
        tick = diagnoses[names[0]].tick
        if not self.is_exact(tick):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + tick + 500_009)
            probes = torch.randn(matrices[0].shape[1], 16, generator=generator).to(matrices[0].device)
        columns = self.k if self.engine == "warm" else min(matrices[0].shape)
        measured = spread(
            matrices,
            torch.stack([basis.U[:, :columns] for basis in bases]),
            torch.stack([basis.V[:, :columns] for basis in bases]),
            probes,
        )
        counts = [diagnoses[name].counts for name in names]
        if which != "update":
            return [{which: measured.shares(i, held)} for i, held in enumerate(counts)]
        values = torch.stack([basis.S[:columns] for basis in bases])
        found = measured.rates(values, counts, self.k)
        for i, held in enumerate(counts):
            update = measured.shares(i, held)
            found[i] = {"update": update, **found[i]} if update.total else {"update": update}
        return found


def _next_depth(depth: int, residual: float) -> int:
    """One deeper where a cycle fell short, one less where it went far beyond: a block gains about a factor of 3."""
    if residual > RESIDUAL:
        return min(depth + 1, MOST_DEPTH)
    return max(depth - 1, 1) if residual < RESIDUAL / 10 else depth


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


def _packed(basis: Basis) -> dict[str, Any]:
    first = None if basis.first is None else _packed(basis.first)
    return {**{key: getattr(basis, key) for key in ("tick", "U", "S", "V", "directions", "depth")}, "first": first}


def _unpacked(packed: Mapping[str, Any]) -> Basis:
    first = packed["first"]
    return Basis(**{**packed, "first": None if first is None else _unpacked(first)})
