"""Initialisation of low-rank pairs by a scheme, remembered well enough to check what was written."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Generator, Tensor

from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.errors import Mismatch, UsageError
from lab.init import Factors, InitScheme
from lab.layer import Evidence, Target, weight_of
from lab.process import heartbeat
from lab.structure import Offset, Structure

NOTHING = 1e-5  # ‖B A‖ / (‖A‖ ‖B‖) that float32 leaves where B A = 0 by construction, as in init=orthogonal


@dataclass(frozen=True)
class LayerInit:
    """What a scheme returned for one layer."""

    offset: Offset
    delta_norm: float  # ‖s B A‖_F
    seconds: float
    info: dict[str, float]  # the scheme's own scalars
    factors_sha256: str  # of A and B as returned, before they were written
    base_sha256: str | None  # of the base weight as it must be now, (out, in); None where the scheme leaves it alone

    @property
    def base_replaced(self) -> bool:
        """True where the scheme gave the layer another weight to train on (LoftQ)."""
        return self.base_sha256 is not None and self.offset != "fold"


@dataclass(frozen=True)
class Initialised:
    """What a scheme returned for every layer, in module order."""

    layers: dict[str, LayerInit]

    def applied_to(self, planned: Structure) -> Structure:
        """The planned structure with the offsets and replaced bases that the scheme chose."""
        return Structure(
            {
                name: replace(form, offset=self.layers[name].offset, base_replaced=self.layers[name].base_replaced)
                for name, form in planned.layers.items()
            }
        )

    @property
    def delta_norm(self) -> float:
        """‖s B A‖_F over all layers together."""
        return math.sqrt(sum(layer.delta_norm**2 for layer in self.layers.values()))

    @property
    def sha256(self) -> str:
        """Identity of every pair as it was returned."""
        pairs = (f"{name} {layer.factors_sha256}\n" for name, layer in sorted(self.layers.items()))
        return hashlib.sha256("".join(pairs).encode()).hexdigest()

    @property
    def decomposed(self) -> dict[str, float]:
        """How a scheme's decompositions went: the median share of energy captured, the most passes, how many exact."""
        keys = {"captured_energy", "svd_passes", "svd_exact"}
        infos = [layer.info for layer in self.layers.values() if keys <= layer.info.keys()]
        if not infos:
            return {}
        return {
            "captured_energy": median(info["captured_energy"] for info in infos),
            "svd_passes": max(info["svd_passes"] for info in infos),
            "svd_exact": sum(info["svd_exact"] for info in infos),
        }

    def rows(self) -> list[dict[str, str | float]]:
        """What is known of each layer, in module order: its offset, its product, its seconds, the scheme's scalars."""
        return [
            {
                "module": name,
                "offset": layer.offset,
                "delta_norm": layer.delta_norm,
                "seconds": layer.seconds,
                **layer.info,
            }
            for name, layer in self.layers.items()
        ]

    @property
    def seconds(self) -> float:
        """Wall time of the scheme over all layers."""
        return sum(layer.seconds for layer in self.layers.values())


def initialise(
    model: PeftModel,
    scheme: InitScheme,
    targets: Sequence[Target],
    evidence: Mapping[str, Evidence],
    *,
    seed: int,
    progress: Callable[[Target], None] | None = None,
) -> Initialised:
    """Ask the scheme for each target's pair and write it, with its offset; `progress` is told of each finished layer.

    Each layer draws from a private CPU generator seeded by (seed, name), so a layer's numbers do not depend on which
    others are adapted. Weight and evidence are handed over on the weight's device. The processes of a job share the
    layers: each asks for every world-th one and gives its pair to the others. Raises UsageError for factors of
    the wrong shape, dtype or value, and for an offset or a new base that DoRA or a quantised or shared weight cannot
    have.
    """
    layers = adapted_layers(model)
    shared = _shared_weights(model)
    filled: dict[str, LayerInit] = {}
    for i, target in enumerate(targets):
        heartbeat.beat()
        if target.name not in layers:
            raise Mismatch(f"{target.name} is a target but has no adapter to initialise.")
        layer = layers[target.name]
        began = time.perf_counter()
        weight = layer.base_weight()
        rank = layer.A.shape[0]

        def ask(target: Target = target, weight: Tensor = weight, rank: int = rank, s: float = layer.s) -> Factors:
            own = _on(evidence.get(target.name, Evidence()), weight.device)
            factors = scheme.factors(target, weight, rank, s, own, generator_for(seed, target.name))
            _check(scheme, target, rank, factors)
            return factors

        factors = from_owner(ask, i, target.shape, rank, weight.device)
        _check_fit(target, layer, factors, shared)
        filled[target.name] = _write(layer, factors, began)
        if progress is not None:
            progress(target)
    return Initialised(filled)


def from_owner(
    ask: Callable[[], Factors], turn: int, shape: tuple[int, int], rank: int, device: torch.device
) -> Factors:
    """The factors of a layer of shape (out, in), asked for by the process whose turn it is; a job's only process asks.

    What `ask` raises ends that process, and with it the job: the others wait for it in vain until they are stopped.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ask()
    owner = turn % dist.get_world_size()
    own = ask() if dist.get_rank() == owner else None
    header: list[Any] = [None if own is None else (own.offset, dict(own.info), own.base is not None)]
    dist.broadcast_object_list(header, src=owner)
    offset, info, replaces = header[0]
    out, inner = shape

    def give(mine: Tensor | None, size: tuple[int, int]) -> Tensor:
        tensor = torch.empty(size, device=device) if mine is None else mine.detach().to(device).contiguous()
        dist.broadcast(tensor, src=owner)
        return tensor

    A = give(None if own is None else own.A, (rank, inner))
    B = give(None if own is None else own.B, (out, rank))
    base = give(None if own is None else own.base, shape) if replaces else None
    return Factors(A=A, B=B, offset=offset, base=base, info=info)


def generator_for(seed: int, name: str) -> Generator:
    """A CPU generator that is a pure function of the seed and the layer's name, in every process and version."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def sha256_of(*tensors: Tensor) -> str:
    """The digest of the tensors' bytes, in order and row-major."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _write(layer: LowRankLinear, factors: Factors, began: float) -> LayerInit:
    base_sha256 = None
    if factors.offset == "fold":
        base_sha256 = sha256_of(layer.folded(factors.A, factors.B))
    if factors.base is not None:
        base_sha256 = sha256_of(factors.base.to(weight_of(layer.get_base_layer()).dtype))
        layer.replace_base(factors.base)
    layer.A.copy_(factors.A)
    layer.B.copy_(factors.B)
    if factors.offset != "none":
        layer.set_offset(factors.offset, factors.A, factors.B)
    if layer.magnitude is not None:
        layer.magnitude.copy_(layer.row_norms())
    return LayerInit(
        offset=factors.offset,
        delta_norm=delta_norm(factors.A if layer.E is None else factors.A * layer.E, factors.B, layer.s),
        seconds=time.perf_counter() - began,
        info=dict(factors.info),
        factors_sha256=sha256_of(factors.A, factors.B),
        base_sha256=base_sha256,
    )


def delta_norm(A: Tensor, B: Tensor, scaling: float) -> float:
    """‖s B A‖_F without forming the product: with B = QR it is s ‖R A‖_F."""
    return abs(scaling) * float(torch.linalg.vector_norm(torch.linalg.qr(B.detach()).R @ A.detach()))


def _on(evidence: Evidence, device: torch.device) -> Evidence:
    values: dict[str, Any] = {field.name: getattr(evidence, field.name) for field in fields(evidence)}
    values |= {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return Evidence(**values)


def _check(scheme: InitScheme, target: Target, rank: int, factors: Factors) -> None:
    name = type(scheme).__name__
    out, inner = target.shape
    given = [("A", factors.A, (rank, inner)), ("B", factors.B, (out, rank))]
    if factors.base is not None:
        given.append(("a base", factors.base, target.shape))
    for letter, matrix, shape in given:
        if tuple(matrix.shape) != shape:
            raise UsageError(
                f"init {name} returned {letter} of shape {tuple(matrix.shape)} for {target.name}, not {shape}."
            )
        if matrix.dtype != torch.float32:
            raise UsageError(f"init {name} returned {letter} in {matrix.dtype} for {target.name}, not float32.")
        if not bool(torch.isfinite(matrix).all()):
            bad = int((~torch.isfinite(matrix)).sum())
            raise UsageError(
                f"init {name} returned {letter} with {bad} of {matrix.numel()} entries not finite for {target.name}; "
                "check the weights and the data it was given, or choose init=random."
            )
    if factors.offset not in ("separate", "fold", "none"):
        raise UsageError(f"init {name} asked for offset {factors.offset!r}; it is one of separate, fold, none.")


def _check_fit(target: Target, layer: LowRankLinear, factors: Factors, shared: set[int]) -> None:
    """Refuse factors that this layer cannot take: under DoRA, or where the base weight must change and cannot."""
    if layer.magnitude is not None:
        size = float(torch.linalg.vector_norm(factors.A) * torch.linalg.vector_norm(factors.B))
        if factors.offset != "none" or delta_norm(factors.A, factors.B, 1.0) > NOTHING * size:
            raise UsageError(
                f"adapter.use_dora rescales the whole weight, so it starts from B A = 0, and this init gives "
                f"{target.name} a pair with B A ≠ 0; use init=random or adapter.use_dora=false."
            )
    if factors.base is not None and factors.offset != "none":
        raise UsageError(f"a scheme that replaces the base of {target.name} has no use for offset {factors.offset}.")
    if factors.offset == "fold" or factors.base is not None:
        what = "offset fold" if factors.base is None else "an init that replaces the base"
        if layer.quantised:
            raise UsageError(f"{what} writes to the weight of {target.name}, which is quantised; load it unquantised.")
        if id(layer.get_base_layer().weight) in shared:
            raise UsageError(
                f"{what} writes to the weight of {target.name}, which another module shares; "
                "leave it out with adapter.exclude_modules, or use offset separate."
            )


def _shared_weights(model: PeftModel) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
