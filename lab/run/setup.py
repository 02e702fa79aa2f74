"""Live models of a run, from its config: base to adapted model, each step read back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lab.adapter.initialise import Initialised, initialise
from lab.adapter.install import Scaling, install, scaling_factor
from lab.adapter.layer import adapted_layers
from lab.adapter.state import load_adapter_state
from lab.adapter.verify import Applied, frozen_digests, verify, verify_frozen, verify_restored
from lab.config import RunConfig, instantiate
from lab.data.encode import Sample
from lab.errors import Mismatch, UsageError
from lab.evidence.gather import Look
from lab.init import InitScheme
from lab.init.adalora import Triplets
from lab.instruments.first_step import FirstStepWatch
from lab.instruments.rank_plan import PlanFigure
from lab.layer import Target, find_targets, weight_of
from lab.model import Model, combined, digests_of, weights_sha256
from lab.rank_strategy.adalora import Adalora
from lab.training.distributed import check_equal, from_rank_0
from lab.training.hardware import Resolved

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from peft import PeftModel


@dataclass(frozen=True)
class BaseHashes:
    """Identity of a base: as its files store it, and as this run holds it."""

    stored: str | None  # None for a model class of a user's own that cannot tell
    held: str
    of_each: dict[str, bytes]  # as held, by name

    def structure(self) -> dict[str, str | None]:
        """What a checkpoint keeps of it."""
        return {"base_sha256": self.held, "stored_sha256": self.stored}


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

    net: Any  # a PeftModel with method=lora, else the transformers model
    targets: list[Target]
    structure: dict[str, Any]
    applied: Applied | None = None
    init_record: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, bytes] = field(default_factory=dict)  # digests of the base's weights under the adapters
    filled: Initialised | None = None  # None with method=full, and on a run that goes on

    def watchers(self, run_dir: Path) -> "list[Callback]":
        """What looks at a fresh run of adapters from outside: the figure of its ranks, its first step."""
        if self.applied is None:
            return []
        return [PlanFigure(self.applied.ranks, self.targets), FirstStepWatch(run_dir, self.targets)]


def load_base(model: Any, config: RunConfig, hardware: Resolved) -> tuple[nn.Module, list[Target]]:
    """The base on its device, and the layers to adapt; shapes are checked before any weight is read."""
    targets: list[Target] = []
    if config.method == "lora":
        for node in (config.rank_strategy, config.init):  # what they refuse of their values, they refuse now
            instantiate.make(node)
        targets = find_targets(model.skeleton(), config.adapter.target_modules, config.adapter.exclude_modules)
        for target in targets:
            if config.rank > target.max_rank:
                raise UsageError(
                    f"rank={config.rank} is larger than the smaller side of {target.name} ({target.shape[0]} x "
                    f"{target.shape[1]}); use rank <= {min(t.max_rank for t in targets)}, or adapter.exclude_modules."
                )
    full_mixed = config.method == "full" and hardware.precision == "bf16-mixed"
    net = model.load(torch.float32 if full_mixed else hardware.compute_dtype, config.seed)
    if config.hardware.gradient_checkpointing:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.enable_input_require_grads()
    return net.to(hardware.device), targets


def adapt(
    net: nn.Module,
    targets: list[Target],
    config: RunConfig,
    hardware: Resolved,
    train: Sequence[Sample],
    pad_id: int,
    base: BaseHashes,
) -> Adapted:
    """Plan, install, fill and verify the adapters of a fresh run; raises Mismatch where the model is not as planned."""
    began = time.perf_counter()
    if config.method == "full":
        check_equal({"the base's sha256": base.held})
        net.requires_grad_(True)
        return Adapted(net, [], {"method": "full", **base.structure()})
    strategy, scheme = instantiate.make(config.rank_strategy), instantiate.make(config.init)
    adaptive = isinstance(strategy, Adalora)
    if adaptive:
        scheme = _scheme_of(strategy, scheme)
    look = Look(net, targets, config, train, pad_id, hardware.device)
    of_strategy, of_scheme = look.evidence(strategy, scheme)
    modules = dict(net.named_modules())
    weights = {target.name: weight_of(modules[target.name]).detach() for target in targets}
    generator = torch.Generator().manual_seed(config.seed)
    plan = from_rank_0(lambda: strategy.allocate(targets, config.rank, weights, of_strategy, generator))
    scaling = scaling_factor(config.alpha, config.rank, cast(Scaling, config.scaling))
    adapted = _installed(net, targets, plan, config)
    if adaptive:
        for layer in adapted_layers(adapted).values():
            layer.add_values()
    filled = initialise(adapted, scheme, targets, of_scheme, seed=config.seed)
    applied = verify(adapted, targets, plan, scaling, filled, config.adapter.use_dora, adaptive)
    written = {f"{name}.weight" for name, layer in filled.layers.items() if layer.base_sha256 is not None}
    frozen = verify_frozen(adapted, base.of_each, leave_out=written)  # whose own digests were compared just now
    check_equal({"the base's sha256": base.held, "the rank plan": applied.ranks, "the init": filled.sha256})
    structure = {
        "method": "lora",
        **base.structure(),
        "plan": plan,
        "offset": applied.offset,
        "init": config.init["_target_"],
    }
    record = {
        "scheme": getattr(scheme, "label", type(scheme).__name__),
        "offset": applied.offset,
        "modules_targeted": applied.modules_targeted,
        "modules_initialised": applied.modules_initialised,
        "delta_norm": applied.delta_norm,
        "looked_at": look.said,
        "tokens": look.tokens,
        "seconds": time.perf_counter() - began,
        **filled.decomposed,
    }
    return Adapted(adapted, targets, structure, applied, record, frozen, filled)


def readapt(
    net: nn.Module, targets: list[Target], config: RunConfig, checkpoint: dict[str, Any], model: Model
) -> Adapted:
    """The model a checkpoint was written from: its structure rebuilt, its weights loaded; no data, no SVD.

    Raises UsageError where the base is not the one that the run began with.
    """
    structure = checkpoint["structure"]
    _check_base(structure, model, net, config.seed)
    if structure["method"] == "full":
        net.requires_grad_(True)
        net.load_state_dict(checkpoint["state_dict"])
        return Adapted(net, [], structure)
    adapted = _installed(net, targets, structure["plan"], config)
    load_adapter_state(adapted, checkpoint["state_dict"])
    scaling = scaling_factor(config.alpha, config.rank, cast(Scaling, config.scaling))
    facts = (structure["plan"], scaling, structure["offset"], checkpoint["state_dict"], config.adapter.use_dora)
    verify_restored(adapted, targets, *facts)
    return Adapted(adapted, targets, structure, frozen=frozen_digests(adapted))


def check_step0(adapted: Adapted, base: float, step0: float, config: RunConfig) -> None:
    """Raises Mismatch where an adapter that must not move the base at step 0 does, by the losses before and after.

    A product of 0 and a separate offset leave every output as it was, to the last bit; DoRA rounds the weights it
    rescales.
    """
    applied = adapted.applied
    if applied is None or not (applied.offset == "separate" or applied.delta_norm == 0) or applied.bases_replaced:
        return
    tolerance = 1e-2 if config.adapter.use_dora else 1e-5  # 2^-8 of bf16's weights, summed; float32's last digits
    if abs(step0 - base) > tolerance * max(1.0, abs(base)):
        raise Mismatch(
            f"the loss at step 0 is {step0:.6f} and the base's {base:.6f}: with offset {applied.offset} and a product "
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


def _scheme_of(strategy: Adalora, scheme: Any) -> InitScheme:
    """AdaLoRA's own, in place of plain LoRA's; raises UsageError for any other, which it could not use."""
    if getattr(scheme, "label", None) != "random":
        raise UsageError(
            f"rank_strategy=adalora fills its triplets itself, with a product of 0, and init={type(scheme).__name__} "
            "would not be used; choose init=random."
        )
    return Triplets()


def _installed(net: nn.Module, targets: list[Target], plan: dict[str, int], config: RunConfig) -> "PeftModel":
    return install(
        net,
        targets,
        plan,
        rank=config.rank,
        alpha=config.alpha,
        scaling=cast(Scaling, config.scaling),
        dropout=config.adapter.dropout,
        use_dora=config.adapter.use_dora,
    )
