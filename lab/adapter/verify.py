"""Verification of a live model: its structure, pairs and frozen weights are what was asked, or the run stops."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from lab.adapter.initialise import Initialised, LayerInit, delta_norm, sha256_of
from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.adapter.read import check_structure, named, refuse
from lab.adapter.state import adapter_state
from lab.errors import Mismatch
from lab.layer import weight_of
from lab.model import digests_of
from lab.structure import Difference, Structure


@dataclass(frozen=True)
class Applied:
    """Facts of a freshly adapted model, every value read back from it."""

    structure: Structure
    modules_initialised: int  # whose factors are bit for bit what the scheme returned
    trainable_params: int
    total_params: int  # base, factors and offset
    delta_norm: float  # ‖s B A‖_F over all layers
    budget_used: int  # Σ rank · (out + in)


def verify(model: PeftModel, planned: Structure, initialised: Initialised) -> Applied:
    """Compare the live model with the plan and with what the scheme returned; raises Mismatch naming the modules."""
    layers = adapted_layers(model)
    absent = [name for name in planned.layers if name not in initialised.layers]
    if absent:
        raise Mismatch(f"{named(absent)} never initialised.")
    structure = check_structure(model, initialised.applied_to(planned))
    refuse(
        (fault for name, layer in layers.items() for fault in _faults(name, layer, initialised.layers[name])),
        len(layers),
    )
    trainable, total = model.get_nb_trainable_parameters()
    return Applied(
        structure=structure,
        modules_initialised=sum(
            sha256_of(layer.A, layer.B) == initialised.layers[name].factors_sha256 for name, layer in layers.items()
        ),
        trainable_params=trainable,
        total_params=total,
        delta_norm=math.sqrt(sum(delta_norm(layer.scaled_A, layer.B, layer.s) ** 2 for layer in layers.values())),
        budget_used=sum(layer.A.numel() + layer.B.numel() for layer in layers.values()),
    )


def _faults(name: str, layer: LowRankLinear, init: LayerInit) -> "list[Difference]":
    """Digests of the pair, its offset and the base's weight that are not those of what the scheme returned."""
    pair = sha256_of(layer.A, layer.B)
    facts: list[tuple[str, object, object]] = [("the digest of A and B", init.factors_sha256, pair)]
    if init.base_sha256 is not None:
        weight = weight_of(layer.get_base_layer())
        facts.append(("the digest of the base weight", init.base_sha256, sha256_of(weight)))
    if layer.offset != "none":
        kept = sha256_of(layer.offset_A, layer.offset_B)
        facts.append(("the digest of the offset pair", init.factors_sha256, kept))
    return [Difference(name, what, asked, actual) for what, asked, actual in facts if asked != actual]


def verify_restored(model: PeftModel, structure: Structure, state: Mapping[str, Tensor]) -> None:
    """Compare a model rebuilt from a checkpoint with the checkpoint's structure and state; raises Mismatch."""
    check_structure(model, structure)
    live = adapter_state(model)
    differing = [name for name in sorted(live.keys() | state.keys()) if not _same(live.get(name), state.get(name))]
    if differing:
        raise Mismatch(f"{named(differing)} not what the checkpoint holds.")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one.cpu(), other.cpu())


def frozen_digests(model: PeftModel) -> dict[str, bytes]:
    """The digest of every weight that does not train, named as in the pristine base; offsets are none of them."""
    base = model.get_base_model()
    own = {id(p) for layer in adapted_layers(model).values() for p in layer.own_parameters()}
    frozen = [(name.replace(".base_layer.", "."), p) for name, p in base.named_parameters() if id(p) not in own]
    return digests_of(frozen)


def verify_frozen(model: PeftModel, before: Mapping[str, bytes], leave_out: Collection[str] = ()) -> dict[str, bytes]:
    """The digests of the frozen base; raises Mismatch where a weight is not what it was, but for those named."""
    after = frozen_digests(model)
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    changed = [name for name in changed if name not in leave_out]
    if changed:
        raise Mismatch(f"{named(changed)} of the frozen base, and changed ({len(changed)} of {len(before)} weights).")
    return after
