"""Read everything back from the live model: what was planned is what is there, or the run stops."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lab.adapter.initialise import Initialised, LayerInit, delta_norm, sha256_of
from lab.adapter.layer import ADAPTER, LowRankLinear, adapted_layers
from lab.adapter.state import adapter_state
from lab.errors import Mismatch
from lab.layer import Target, weight_of
from lab.model import digests_of
from lab.rank_strategy import RankPlan

__all__ = ["Applied", "Mismatch", "frozen_digests", "verify", "verify_frozen", "verify_restored"]

Found = tuple[str, object, object]  # what, asked, found


@dataclass(frozen=True)
class Applied:
    """What the live model holds, every value read back from it."""

    ranks: dict[str, int]
    scalings: dict[str, float]
    modules_targeted: int
    modules_initialised: int  # whose factors are bit for bit what the scheme returned
    trainable_params: int
    total_params: int  # base, factors and offset
    offset: str  # separate | fold | none, or the kinds that occur joined by +
    bases_replaced: int  # layers that train on another weight than the base's own (LoftQ)
    delta_norm: float  # ‖s B A‖_F over all layers
    budget_used: int  # Σ rank · (out + in)


def verify(
    model: PeftModel,
    targets: Sequence[Target],
    plan: RankPlan,
    scaling: float,
    initialised: Initialised,
    use_dora: bool,
    adaptive: bool = False,
) -> Applied:
    """Compare the live model with the plan and with what the scheme returned; raises Mismatch naming the modules.

    `adaptive`: AdaLoRA's values E are there and 0, as its step 0 has them.
    """
    layers = adapted_layers(model)
    _check_modules(model, targets, layers)
    _collect(targets, lambda target: _structure(layers[target.name], target, plan[target.name], scaling, use_dora))
    dropout = cast(LoraConfig, model.peft_config[ADAPTER]).lora_dropout
    _collect(targets, lambda target: _dropout(layers[target.name], dropout))
    absent = [target.name for target in targets if target.name not in initialised.layers]
    if absent:
        raise Mismatch(f"{_names(absent)} never initialised.")
    _collect(targets, lambda target: _values(layers[target.name], adaptive))
    _collect(targets, lambda target: _filled(layers[target.name], initialised.layers[target.name]))
    _check_trainable(model, layers)
    trainable, total = model.get_nb_trainable_parameters()
    return Applied(
        ranks={name: layer.A.shape[0] for name, layer in layers.items()},
        scalings={name: layer.s for name, layer in layers.items()},
        modules_targeted=len(targets),
        modules_initialised=sum(
            sha256_of(layer.A, layer.B) == initialised.layers[name].factors_sha256 for name, layer in layers.items()
        ),
        trainable_params=trainable,
        total_params=total,
        offset="+".join(sorted({layer.offset for layer in layers.values()})),
        bases_replaced=sum(layer.base_replaced for layer in layers.values()),
        delta_norm=math.sqrt(sum(delta_norm(layer.scaled_A, layer.B, layer.s) ** 2 for layer in layers.values())),
        budget_used=sum(layer.A.numel() + layer.B.numel() for layer in layers.values()),
    )


def verify_restored(
    model: PeftModel,
    targets: Sequence[Target],
    plan: RankPlan,
    scaling: float,
    offset: str,
    state: Mapping[str, Tensor],
    use_dora: bool,
) -> None:
    """Compare a model rebuilt from a checkpoint with the checkpoint's structure and state; raises Mismatch."""
    layers = adapted_layers(model)
    _check_modules(model, targets, layers)
    _collect(targets, lambda target: _structure(layers[target.name], target, plan[target.name], scaling, use_dora))
    dropout = cast(LoraConfig, model.peft_config[ADAPTER]).lora_dropout
    _collect(targets, lambda target: _dropout(layers[target.name], dropout))
    found = "+".join(sorted({layer.offset for layer in layers.values()}))
    if found != offset:
        raise Mismatch(f"the offset is {found}, asked {offset}.")
    live = adapter_state(model)
    differing = [name for name in sorted(live.keys() | state.keys()) if not _same(live.get(name), state.get(name))]
    if differing:
        raise Mismatch(f"{_names(differing)} not what the checkpoint holds.")
    _check_trainable(model, layers)


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
        raise Mismatch(f"{_names(changed)} of the frozen base, and changed ({len(changed)} of {len(before)} weights).")
    return after


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'was' if len(names) == 1 else 'were'}"


def _collect(targets: Sequence[Target], check: Callable[[Target], Iterator[Found]]) -> None:
    """Raise for the first fact that differs, with every module on which that same fact does."""
    differing: dict[str, list[tuple[str, object, object]]] = {}
    for target in targets:
        for what, asked, found in check(target):
            if asked != found:
                differing.setdefault(what, []).append((target.name, asked, found))
    for what, rows in differing.items():
        name, asked, found = rows[0]
        more = f" (and on {len(rows) - 1} more of {len(targets)} modules)" if len(rows) > 1 else ""
        raise Mismatch(f"{name}: {what} is {found}, asked {asked}{more}.")


def _check_modules(model: PeftModel, targets: Sequence[Target], layers: dict[str, LowRankLinear]) -> None:
    wanted = {target.name for target in targets}
    tuned = {n for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}
    missing = [target.name for target in targets if target.name not in layers]
    if missing:
        raise Mismatch(f"{_names(missing)} targeted, but has no adapter ({len(missing)} of {len(targets)} targets).")
    extra = sorted(tuned - wanted)
    if extra:
        raise Mismatch(f"{_names(extra)} not targeted, but has an adapter.")


def _structure(layer: LowRankLinear, target: Target, rank: int, scaling: float, use_dora: bool) -> Iterator[Found]:
    out, inner = target.shape
    yield "the rank", rank, layer.r[ADAPTER]
    yield "the shape of A", (rank, inner), tuple(layer.A.shape)
    yield "the shape of B", (out, rank), tuple(layer.B.shape)
    if not math.isclose(layer.s, scaling, rel_tol=1e-9):  # alpha / r may differ from it in the last bit of a double
        yield "the scaling", scaling, layer.s
    yield "DoRA", use_dora, layer.magnitude is not None
    for letter, factor in (("A", layer.A), ("B", layer.B)):
        yield f"the dtype of {letter}", torch.float32, factor.dtype
        yield f"{letter}.requires_grad", True, factor.requires_grad
    yield "the active adapters", [ADAPTER], list(layer.active_adapters)
    yield "the switch that turns adapters off", False, layer.disable_adapters
    yield "the list of merged adapters", [], list(layer.merged_adapters)


def _dropout(layer: LowRankLinear, asked: float) -> Iterator[Found]:
    module = layer.lora_dropout[ADAPTER]
    yield "the dropout", asked, module.p if isinstance(module, nn.Dropout) else 0.0


def _values(layer: LowRankLinear, asked: bool) -> Iterator[Found]:
    yield "the presence of AdaLoRA's values", asked, layer.E is not None
    if asked and layer.E is not None:
        yield "the shape of E", (layer.A.shape[0], 1), tuple(layer.E.shape)
        yield "E.requires_grad", True, layer.E.requires_grad
        yield "the number of values of E that are not 0", 0, layer.rank


def _filled(layer: LowRankLinear, init: LayerInit) -> Iterator[Found]:
    """The pair, its offset and the folded weight against the digests of what the scheme returned."""
    yield "the digest of A and B", init.factors_sha256, sha256_of(layer.A, layer.B)
    yield "the offset", init.offset, layer.offset
    present = layer.offset_A is not None and layer.offset_B is not None
    yield "an offset pair present", init.offset != "none", present
    if init.base_sha256 is not None:
        yield "the digest of the base weight", init.base_sha256, sha256_of(weight_of(layer.get_base_layer()))
    if not present:
        return
    yield "offset_A.requires_grad", False, layer.offset_A.requires_grad
    yield "offset_B.requires_grad", False, layer.offset_B.requires_grad
    yield "the digest of the offset pair", init.factors_sha256, sha256_of(layer.offset_A, layer.offset_B)
    yield "the offset's scaling", -layer.s if init.offset == "separate" else 0.0, layer.offset_scaling


def _check_trainable(model: PeftModel, layers: dict[str, LowRankLinear]) -> None:
    wanted = {id(p) for layer in layers.values() for p in layer.trained_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in wanted:
            raise Mismatch(f"{name} is trainable; only the factors of adapted layers may be.")
        if not parameter.requires_grad and id(parameter) in wanted:
            raise Mismatch(f"{name} is frozen; the factors of adapted layers must train.")
