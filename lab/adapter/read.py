"""Reading of a live model's structure: what trains, in which form, and whether each pair is whole."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lab.adapter.layer import ADAPTER, LowRankLinear, adapted_layers
from lab.adapter.osf import OsfLinear, form_of_osf, osf_layers
from lab.adapter.switched import SwitchedLinear, switched_layers
from lab.errors import Mismatch
from lab.layer import shape_of
from lab.model import base_of
from lab.structure import Difference, LayerForm, Structure, differences


def read(net: Any) -> Structure:
    """The structure of a model, named as in its pristine base.

    Raises Mismatch where a pair is not whole: of another shape or dtype than it states, frozen, switched off, merged,
    with another dropout than the others, or with half an offset; a switched one also where what it froze would train,
    and one that keeps directions where the others do not.
    """
    structure = _forms(net)
    _check_whole(net)
    return structure


def _forms(net: Any) -> Structure:
    pairs = adapted_layers(net)
    kept = osf_layers(base_of(net))
    trained = {id(p) for layer in pairs.values() for p in layer.trained_parameters()}
    trained |= {id(p) for layer in kept.values() for p in layer.osf_svd_params.parameters()}
    forms = {}
    for name, module in base_of(net).named_modules():
        if name in pairs:
            forms[name] = form_of(pairs[name])
        elif isinstance(module, SwitchedLinear):
            forms[name] = module.form
        elif name in kept:
            forms[name] = form_of_osf(module)
        elif any(p.requires_grad and id(p) not in trained for p in module.parameters(recurse=False)):
            forms[name] = LayerForm("full")
    return Structure(forms)


def form_at(net: Any, name: str) -> LayerForm:
    """The form of one module, read from what it holds."""
    layer = base_of(net).get_submodule(name)
    if isinstance(layer, LowRankLinear):
        return form_of(layer)
    if isinstance(layer, OsfLinear):
        return form_of_osf(layer)
    return layer.form if isinstance(layer, SwitchedLinear) else LayerForm("full")


def form_of(layer: LowRankLinear) -> LayerForm:
    """The form of a layer with a pair, as it states itself."""
    return LayerForm(
        "delta",
        rank=layer.r[ADAPTER],
        scaling=layer.s,
        dora=layer.magnitude is not None,
        offset=layer.offset,
        base_replaced=layer.base_replaced,
        active=None if layer.E is None else layer.rank,
    )


def check_structure(net: Any, asked: Structure) -> Structure:
    """The structure read back; raises Mismatch naming the modules where it is not the one asked for."""
    actual = _forms(net)
    if actual != asked:
        _refuse_other(net, asked, actual)
    _check_whole(net)
    return actual


def _refuse_other(net: Any, asked: Structure, actual: Structure) -> None:
    pairs = asked.pairs.keys()
    missing = [name for name in pairs if name not in actual.pairs]
    if missing:
        raise Mismatch(f"{named(missing)} targeted, but has no adapter ({len(missing)} of {len(pairs)} targets).")
    modules = dict(base_of(net).named_modules())
    extra = [name for name in actual.layers if name not in asked.layers]
    tuned = [name for name in extra if isinstance(modules[name], BaseTunerLayer)]
    if tuned:
        raise Mismatch(f"{named(tuned)} not targeted, but has an adapter.")
    if extra:
        own = modules[extra[0]].named_parameters(recurse=False)
        leaf = next(name for name, parameter in own if parameter.requires_grad)
        raise Mismatch(f"{extra[0]}.{leaf} is trainable; only the factors of adapted layers may be.")
    frozen = [name for name in asked.layers if name not in actual.layers]
    if frozen:
        raise Mismatch(f"{named(frozen)} to train in full, and frozen ({len(frozen)} of {len(asked.layers)} modules).")
    refuse(differences(asked, actual), len(pairs))


def _check_whole(net: Any) -> None:
    pairs = adapted_layers(net)
    dropout = net.peft_config[ADAPTER].lora_dropout if pairs else 0.0
    faults = (fault for name, layer in pairs.items() for fault in _faults(name, layer, dropout))
    refuse(faults, len(pairs))
    check_switched(switched_layers(base_of(net)))
    kept = osf_layers(base_of(net))
    facts = ((name, *each) for name, layer in kept.items() for each in layer.osf_svd_params.named_parameters())
    refuse((Difference(n, f"{of}.requires_grad", True, False) for n, of, p in facts if not p.requires_grad), len(kept))


def check_switched(layers: Mapping[str, SwitchedLinear]) -> None:
    """Raises Mismatch where factors do not fit each other or do not train, or a residual does."""
    for name, layer in layers.items():
        out, inner = layer.shape
        facts: dict[str, tuple[object, object]] = {
            "the rank of B": (layer.A.shape[0], layer.B.shape[1]),
            "A.requires_grad": (True, layer.A.requires_grad),
            "B.requires_grad": (True, layer.B.requires_grad),
        }
        if layer.E is not None:
            facts |= {"the shape of E": ((out, inner), tuple(layer.E.shape))}
            facts |= {"E.requires_grad": (False, layer.E.requires_grad)}
        refuse((Difference(name, what, *pair) for what, pair in facts.items() if pair[0] != pair[1]), len(layers))


def refuse(faults: Iterable[Difference], total: int | None = None) -> None:
    """Raise Mismatch for the first fault of a kind, with the number of other modules that have that same one."""
    kinds: dict[str, list[Difference]] = {}
    for fault in faults:
        kinds.setdefault(fault.what, []).append(fault)
    for what, same in kinds.items():
        first = same[0]
        of = f" of {total}" if total else ""
        more = f" (and on {len(same) - 1} more{of} modules)" if len(same) > 1 else ""
        raise Mismatch(f"{first.module}: {what} is {first.actual}, asked {first.asked}{more}.")


def named(names: list[str]) -> str:
    """The first names of a list and the number of the others, as a sentence about them begins."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'was' if len(names) == 1 else 'were'}"


def _faults(name: str, layer: LowRankLinear, dropout: float) -> Iterator[Difference]:
    """Facts of a layer that do not fit what it states of itself."""
    facts = dict(_facts(layer, dropout))
    yield from (Difference(name, what, asked, actual) for what, (asked, actual) in facts.items() if asked != actual)


def _facts(layer: LowRankLinear, dropout: float) -> Iterator[tuple[str, tuple[object, object]]]:
    out, inner = shape_of(layer.get_base_layer())
    rank, held = layer.r[ADAPTER], layer.lora_dropout[ADAPTER]
    yield "the shape of A", ((rank, inner), tuple(layer.A.shape))
    yield "the shape of B", ((out, rank), tuple(layer.B.shape))
    for letter, factor in (("A", layer.A), ("B", layer.B)):
        yield f"the dtype of {letter}", (torch.float32, factor.dtype)
        yield f"{letter}.requires_grad", (True, factor.requires_grad)
    yield "the active adapters", ([ADAPTER], list(layer.active_adapters))
    yield "the switch that turns adapters off", (False, layer.disable_adapters)
    yield "the list of merged adapters", ([], list(layer.merged_adapters))
    yield "the dropout", (dropout, held.p if isinstance(held, nn.Dropout) else 0.0)
    if layer.E is not None:
        yield "the shape of E", ((rank, 1), tuple(layer.E.shape))
        yield "E.requires_grad", (True, layer.E.requires_grad)
    pair = layer.offset_A is not None and layer.offset_B is not None
    yield "an offset pair present", (layer.offset != "none", pair)
    if pair:
        yield "offset_A.requires_grad", (False, layer.offset_A.requires_grad)
        yield "offset_B.requires_grad", (False, layer.offset_B.requires_grad)
