"""Setup of a run's model, from its config: base to adapted model, each step read back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from lab.adapter.build import Scaling, build, planned, scaling_factor, trained_in_full
from lab.adapter.initialise import Initialised, initialise
from lab.adapter.read import check_structure
from lab.adapter.state import load_model_state, structure_of
from lab.adapter.structured import Structured
from lab.adapter.verify import Applied, frozen_digests, verify, verify_frozen, verify_restored
from lab.config import RunConfig
from lab.data.encode import Sample
from lab.editors.start import first_scheme, switchable
from lab.errors import Mismatch, UsageError
from lab.evidence.gather import EvidenceGatherer
from lab.instruments.targets import SpectralTargets, spectral_targets
from lab.layer import Target, find_targets, weight_of
from lab.model import Model, combined, digests_of, weights_sha256
from lab.run.parts import Parts
from lab.structure import LayerForm, Structure
from lab.svd_policy import SvdPolicy
from lab.svd_policy.osf import Osf
from lab.training import hardware
from lab.training.distributed import check_equal, from_rank_0
from lab.training.hardware import Resolved

BASE_KEYS = ("base_sha256", "stored_sha256")  # in a checkpoint's structure


@dataclass(frozen=True)
class BaseHashes:
    """Identity of a base: as its files store it, and as this run holds it."""

    stored: str | None  # None for a model class of a user's own that cannot tell
    held: str
    of_each: dict[str, bytes]  # as held, by name

    def plain(self) -> dict[str, str | None]:
        """What a checkpoint keeps of it."""
        return dict(zip(BASE_KEYS, (self.held, self.stored), strict=True))


def base_hashes(model: Model, net: nn.Module, seed: int) -> BaseHashes:
    """The hashes of a base that was just loaded, in whatever dtype, and not yet trained."""
    of_each = digests_of(list(net.named_parameters()))
    return BaseHashes(_stored_sha256(model, seed), combined(of_each), of_each)


def _stored_sha256(model: Model, seed: int) -> str | None:
    stored = getattr(model, "stored_sha256", None)
    return stored(seed) if stored is not None else None


@dataclass
class Adapted:
    """A model ready to train, and what was read back from it."""

    model: Structured
    targets: list[Target]
    applied: Applied | None = None  # None without adapters, and on a run that goes on
    init_record: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, bytes] = field(default_factory=dict)  # digests of the base's weights under the adapters
    filled: Initialised | None = None  # as `applied`

    @property
    def net(self) -> Any:
        """A PeftModel where there are adapters, else the transformers model."""
        return self.model.net


def resolve_hardware(config: RunConfig, precision: str | None = None) -> Resolved:
    """The hardware of a run; `precision` is what `auto` came to before."""
    trains_base = config.method == "full"
    return hardware.resolve(config.hardware, config.schedule.batch_size, precision, trains_base)


def load_base(model: Model, config: RunConfig, resolved: Resolved) -> tuple[Any, list[Target]]:
    """The base on its device, and the layers to adapt; shapes are checked before any weight is read."""
    targets: list[Target] = []
    if config.method == "lora":
        targets = adapter_targets(model, config)
    net: Any = model.load(resolved.weight_dtype, config.seed)
    if config.hardware.gradient_checkpointing:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.enable_input_require_grads()
    return net.to(resolved.device), targets


def adapter_targets(model: Model, config: RunConfig) -> list[Target]:
    """The layers that get adapters, known from shapes; raises UsageError for a rank that one of them cannot have."""
    targets = find_targets(model.skeleton(), config.adapter.target_modules, config.adapter.exclude_modules)
    for target in targets:
        if config.rank > target.max_rank:
            raise UsageError(
                f"rank={config.rank} is larger than the smaller side of {target.name} ({target.shape[0]} x "
                f"{target.shape[1]}); use rank <= {min(t.max_rank for t in targets)}, or adapter.exclude_modules."
            )
    return targets


@dataclass(frozen=True)
class PolicyTargets:
    """The layers that a policy acts on, known from shapes."""

    measured: SpectralTargets | None
    switchable: dict[str, tuple[int, int]]  # (out, in)


def policy_targets(parts: Parts, config: RunConfig, resolved: Resolved, total_steps: int) -> PolicyTargets:
    """What the policy measures and what it may switch; raises UsageError where it cannot do as it says."""
    model, policy = parts.model, parts.svd_policy
    adapters = adapter_targets(model, config) if parts.rank_strategy is not None else None
    measured = spectral_targets(model, policy, adapters)
    shapes = switchable(model.skeleton(), policy, resolved.weight_dtype, adapters is not None, total_steps)
    return PolicyTargets(measured, shapes)


def scaling_of(config: RunConfig) -> float:
    """The one scaling of a run's adapters."""
    return scaling_factor(config.alpha, config.rank, cast(Scaling, config.scaling))


def adapt(
    net: nn.Module,
    targets: list[Target],
    parts: Parts,
    config: RunConfig,
    resolved: Resolved,
    train: Sequence[Sample],
    pad_id: int,
    base: BaseHashes,
) -> Adapted:
    """Plan, build, fill and verify a fresh run's model; raises Mismatch where the model is not as planned."""
    began = time.perf_counter()
    if parts.rank_strategy is None or parts.init is None:
        check_equal({"the base's sha256": base.held})
        structure = full_structure(net, parts.svd_policy)
        return Adapted(Structured(build(net, structure), check_structure(net, structure), base.plain()), [])
    strategy, (scheme, values) = parts.rank_strategy, first_scheme(parts.rank_strategy, parts.init)
    gatherer = EvidenceGatherer(net, targets, config, train, pad_id, resolved.device)
    of_strategy, of_scheme = gatherer.evidence(strategy, scheme)
    modules = dict(net.named_modules())
    weights = {target.name: weight_of(modules[target.name]).detach() for target in targets}
    generator = torch.Generator().manual_seed(config.seed)
    plan = from_rank_0(lambda: strategy.allocate(targets, config.rank, weights, of_strategy, generator))
    structure = planned(targets, plan, scaling=scaling_of(config), use_dora=config.adapter.use_dora, values=values)
    adapted = build(net, structure, config.adapter.dropout)
    filled = initialise(adapted, scheme, targets, of_scheme, seed=config.seed)
    applied = verify(adapted, structure, filled)
    written = {f"{name}.weight" for name, layer in filled.layers.items() if layer.base_sha256 is not None}
    frozen = verify_frozen(adapted, base.of_each, leave_out=written)  # whose own digests were compared just now
    ranks = applied.structure.ranks
    check_equal({"the base's sha256": base.held, "the rank plan": ranks, "the init": filled.sha256})
    record = {
        "scheme": getattr(scheme, "label", type(scheme).__name__),
        "offset": applied.structure.offset,
        "modules_targeted": len(targets),
        "modules_initialised": applied.modules_initialised,
        "delta_norm": applied.delta_norm,
        "looked_at": gatherer.sentences,
        "tokens": gatherer.tokens,
        "seconds": time.perf_counter() - began,
        **filled.decomposed,
    }
    model = Structured(adapted, filled.applied_to(structure), base.plain())
    return Adapted(model, targets, applied, record, frozen, filled)


def full_structure(net: nn.Module, policy: SvdPolicy) -> Structure:
    """The structure of a run without adapters: every weight trains, but what the policy keeps from the start."""
    full = trained_in_full(net)
    if not isinstance(policy, Osf):
        return full
    targets = find_targets(net, policy.target_modules, key="svd_policy.target_modules")
    kept = {target.name: LayerForm("osf", kept=policy.kept(target.name, target.shape)) for target in targets}
    return Structure(
        {name: kept.get(name, of) for name, of in full.layers.items() if policy.train_others or name in kept}
    )


def readapt(net: Any, targets: list[Target], config: RunConfig, checkpoint: dict[str, Any], model: Model) -> Adapted:
    """The model a checkpoint was written from: its structure rebuilt, its weights loaded; no data, no SVD.

    Raises UsageError where the base is not the one that the run began with.
    """
    saved, state = checkpoint["structure"], checkpoint["state_dict"]
    _check_base(saved, model, net, config.seed)
    structure = _structure_of(saved, state, net, config)
    built = build(net, structure, config.adapter.dropout)
    load_model_state(built, state)
    base = {key: saved.get(key) for key in BASE_KEYS}
    if not structure.pairs:
        return Adapted(Structured(built, check_structure(built, structure), base), [])
    verify_restored(built, structure, state)
    adapted = [target for target in targets if target.name in structure.pairs]
    return Adapted(Structured(built, structure, base), adapted, frozen=frozen_digests(built))


def _structure_of(saved: dict[str, Any], state: dict[str, Any], net: Any, config: RunConfig) -> Structure:
    """The structure in a checkpoint; those of before 2026-11-28 named a method, and it follows from their state."""
    if "layers" in saved:
        return Structure.from_plain(saved["layers"])
    return structure_of(state, scaling_of(config)) if saved["method"] == "lora" else trained_in_full(net)


def check_step0(adapted: Adapted, base: float, step0: float, config: RunConfig) -> None:
    """Raises Mismatch where an adapter that must not move the base at step 0 does, by the losses before and after.

    A product of 0 and a separate offset leave every output as it was, to the last bit; DoRA rounds the weights it
    rescales.
    """
    applied = adapted.applied
    if applied is None or any(layer.base_replaced for layer in applied.structure.pairs.values()):
        return
    offset = applied.structure.offset
    if offset != "separate" and applied.delta_norm != 0:
        return
    tolerance = 1e-2 if config.adapter.use_dora else 1e-5  # 2^-8 of bf16's weights, summed; float32's last digits
    if abs(step0 - base) > tolerance * max(1.0, abs(base)):
        raise Mismatch(
            f"the loss at step 0 is {step0:.6f} and the base's {base:.6f}: with offset {offset} and a product "
            f"of norm {applied.delta_norm:.3g} the adapters must not move it."
        )


def _check_base(structure: dict[str, Any], model: Model, net: nn.Module, seed: int) -> None:
    """Compare what is stored where both sides know it, else what is held, which depends on the precision too."""
    was = structure.get("stored_sha256")
    stored = _stored_sha256(model, seed) if was is not None else None
    if was is not None and stored is not None:
        if was != stored:
            raise UsageError(
                f"the base has changed since the run began (sha256 {stored[:12]}, was {was[:12]}); give it back the "
                f"model that the run was started with, or start a new run."
            )
        return
    held = weights_sha256(net)
    if structure["base_sha256"] != held:
        raise UsageError(
            f"the base has changed since the run began, or is held in another precision (sha256 {held[:12]}, was "
            f"{structure['base_sha256'][:12]}); give back the model and the precision that the run was started with."
        )
