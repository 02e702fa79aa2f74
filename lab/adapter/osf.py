"""Layers of orthogonal subspace fine-tuning (OSF, arXiv:2504.07097), peft's own: the leading directions are kept.

The weight is U_k S_k V_k of its k leading singular directions, which are frozen, and the rest, whose factors train on
gradients that peft projects off the kept ones. What an optimizer makes of such a gradient is not projected.
"""

import re
from collections.abc import Mapping

import torch
from peft import OSFConfig, inject_adapter_in_model
from peft.tuners.osf.layer import Linear as OsfLinear
from torch import Tensor, nn

from lab.adapter.layer import ADAPTER
from lab.structure import LayerForm


def osf_layers(net: nn.Module) -> dict[str, OsfLinear]:
    """The layers of a model with peft's OSF in their place, in module order."""
    return {name: module for name, module in net.named_modules() if isinstance(module, OsfLinear)}


def install_osf(net: nn.Module, kept: Mapping[str, int]) -> None:
    """Put peft's layers in place of linear ones, which keep so many leading directions; all else is frozen by it."""
    config = OSFConfig(
        target_modules="|".join(map(re.escape, kept)),  # peft takes a full match
        rank_pattern={f"^{re.escape(name)}$": count for name, count in kept.items()},
    )
    inject_adapter_in_model(config, net, ADAPTER)


def form_of_osf(layer: OsfLinear) -> LayerForm:
    """The form of a layer, read from the directions that it trains."""
    out, inner = layer.get_base_layer().weight.shape
    return LayerForm("osf", kept=min(out, inner) - layer.osf_svd_params[ADAPTER]["S_low"].numel())


@torch.no_grad()
def changed(layer: OsfLinear) -> Tensor:
    """The change of the weight since the start, (out, in) float64; peft's `get_delta_weight` rounds its sum."""
    now, start = layer.osf_svd_params[ADAPTER], (layer._osf_U_low_init, layer._osf_S_low_init, layer._osf_V_low_init)
    U, S, V = (each[ADAPTER].double() for each in start)
    return (now["U_low"].double() * now["S_low"].double()) @ now["V_low"].double() - (U * S) @ V


@torch.no_grad()
def dense_linear(layer: OsfLinear) -> nn.Linear:
    """A plain linear layer with the weight that the layer acts with; the bias stays the same parameter."""
    base: nn.Linear = layer.get_base_layer()
    linear: nn.Linear = nn.utils.skip_init(
        nn.Linear, base.in_features, base.out_features, bias=False, device=base.weight.device, dtype=base.weight.dtype
    )
    linear.weight.copy_(base.weight.double() + changed(layer))
    linear.register_parameter("bias", base.bias)
    return linear.train(layer.training)


@torch.no_grad()
def leak(layer: OsfLinear) -> float | None:
    """Share of the change's energy that touches a kept direction on either side: 0 of a perfect projection.

    None of a layer that has not moved.
    """
    k, change = form_of_osf(layer).kept, changed(layer)
    U, _, Vh = torch.linalg.svd(layer.get_base_layer().weight.double(), full_matrices=False)
    U, V = U[:, :k], Vh[:k].T
    free = change - U @ (U.T @ change)
    free = free - (free @ V) @ V.T
    total = float(change.square().sum())
    return float((change - free).square().sum()) / total if total else None


def leaks(net: nn.Module) -> dict[str, dict[str, float | None]]:
    """Directions kept and leak of each layer, for a record."""
    return {name: {"kept": form_of_osf(layer).kept, "leak": leak(layer)} for name, layer in osf_layers(net).items()}
