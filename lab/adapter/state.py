"""State of what trains, in names that know nothing of peft; rebuilding from it needs no data and no SVD."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.errors import Mismatch
from lab.layer import weight_of
from lab.structure import LayerForm, Offset, Structure

OFFSETS: tuple[Offset, ...] = ("separate", "fold")


def model_state(net: Any) -> dict[str, Tensor]:
    """The tensors that a checkpoint needs of a model: its pairs, where the rest is frozen, or all that it has."""
    return adapter_state(net) if adapted_layers(net) else dict(net.state_dict())


def load_model_state(net: Any, state: dict[str, Tensor]) -> None:
    """Give a model the state that `model_state` took, in place; raises where tensors are missing or unexpected."""
    if adapted_layers(net):
        load_adapter_state(net, state)
    else:
        net.load_state_dict(state, strict=True)


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The tensors a checkpoint needs, named `<module>.<leaf>`; live ones, detached, not copies.

    Leaves: `A`, `B`; `E` of values between them; `separate_A`, `separate_B` or `fold_A`, `fold_B` of an offset;
    `magnitude` of DoRA; `base`, (out, in) in the base's dtype, where a scheme replaced the weight.
    """
    return {
        f"{name}.{leaf}": tensor.detach()
        for name, layer in adapted_layers(model).items()
        for leaf, tensor in _tensors(layer).items()
    }


def structure_of(state: Mapping[str, Tensor], scaling: float) -> Structure:
    """The structure of the adapters whose state this is, at one scaling."""
    forms = {}
    for name in (key.removesuffix(".A") for key in state if key.endswith(".A")):
        values = state.get(f"{name}.E")
        forms[name] = LayerForm(
            "delta",
            rank=state[f"{name}.A"].shape[0],
            scaling=scaling,
            dora=f"{name}.magnitude" in state,
            offset=next((kind for kind in OFFSETS if f"{name}.{kind}_A" in state), "none"),
            base_replaced=f"{name}.base" in state,
            active=None if values is None else int(torch.count_nonzero(values)),
        )
    return Structure(forms)


@torch.no_grad()
def load_adapter_state(model: PeftModel, state: dict[str, Tensor]) -> None:
    """Give a model the state that `adapter_state` took, in place; on a freshly installed one offsets and E are rebuilt.

    Raises Mismatch for a missing, unexpected or misshapen tensor, before anything is written, and for a folded offset
    other than the one this base has already given up.
    """
    layers = adapted_layers(model)
    by_layer: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for key, tensor in state.items():
        name, _, leaf = key.rpartition(".")
        if name not in layers:
            raise Mismatch(f"the state holds {key}, but {name} has no adapter.")
        by_layer[name][leaf] = tensor
    for name, layer in layers.items():
        _check(name, layer, by_layer[name])
    for name, layer in layers.items():
        given = by_layer[name]
        if "E" in given and layer.E is None:
            layer.add_values()
        kind = _kind(given)
        if kind != "none" and layer.offset == "none":
            layer.set_offset(kind, given[f"{kind}_A"], given[f"{kind}_B"])
        if "base" in given and not layer.base_replaced:
            layer.replace_base(given["base"])
        for leaf, tensor in _tensors(layer).items():
            tensor.copy_(given[leaf])


def _tensors(layer: LowRankLinear) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"A": layer.A, "B": layer.B}
    if layer.E is not None:
        tensors["E"] = layer.E
    if layer.offset != "none":
        tensors |= {f"{layer.offset}_A": layer.offset_A, f"{layer.offset}_B": layer.offset_B}
    if layer.magnitude is not None:
        tensors["magnitude"] = layer.magnitude
    if layer.base_replaced:
        tensors["base"] = weight_of(layer.get_base_layer())
    return tensors


def _kind(given: dict[str, Tensor]) -> Offset:
    return next((kind for kind in OFFSETS if f"{kind}_A" in given), "none")


def _check(name: str, layer: LowRankLinear, given: dict[str, Tensor]) -> None:
    kind = _kind(given)
    shapes = {leaf: tensor.shape for leaf, tensor in _tensors(layer).items()}
    if kind != "none" and layer.offset == "none":
        shapes |= {f"{kind}_A": layer.A.shape, f"{kind}_B": layer.B.shape}
    if "E" in given:
        shapes["E"] = torch.Size([layer.A.shape[0], 1])
    if "base" in given:
        shapes["base"] = weight_of(layer.get_base_layer()).shape
    missing, unexpected = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes.keys())
    if missing or unexpected:
        raise Mismatch(f"the state of {name} lacks {missing or 'nothing'} and adds {unexpected or 'nothing'}.")
    for leaf, shape in shapes.items():
        if given[leaf].shape != shape:
            raise Mismatch(f"{name}.{leaf} is {tuple(given[leaf].shape)} in the state and {tuple(shape)} in the model.")
    if layer.offset == "fold" and not (
        torch.equal(layer.offset_A.cpu(), given["fold_A"].cpu())
        and torch.equal(layer.offset_B.cpu(), given["fold_B"].cpu())
    ):
        raise Mismatch(f"the base weight of {name} has already given up another folded pair; load on a pristine base.")
