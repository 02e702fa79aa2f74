"""Weight change that the adapters make of the pristine base: as factors, truncated, or summed in."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.errors import UsageError
from lab.layer import weight_of


@dataclass(frozen=True)
class Truncated:
    """The best approximation of a product L R at a lower rank, and what it leaves out."""

    L: Tensor  # (out, k)
    R: Tensor  # (k, in)
    energy: float  # ‖L R‖²_F before
    dropped: float  # of that, in squared units too


def pair(layer: LowRankLinear) -> tuple[Tensor, Tensor]:
    """A (k, in) and B (out, k) with s B A the change against the pristine base; k is twice the rank with an offset."""
    if layer.E is not None:  # directions that were cut are left out, so k may be as little as 0
        kept = layer.E.detach().view(-1) != 0
        return layer.scaled_A.detach()[kept], layer.B.detach()[:, kept]
    if layer.offset == "none":
        return layer.A.detach(), layer.B.detach()
    assert layer.offset_A is not None, "an offset without its pair"
    assert layer.offset_B is not None, "an offset without its pair"
    return torch.cat([layer.A.detach(), layer.offset_A]), torch.cat([layer.B.detach(), -layer.offset_B], dim=1)


@torch.no_grad()
def delta_factors(model: PeftModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Module, L (out, k) and R (k, in), float32: L R is the change of its weight against the pristine base.

    k is the rank, twice it with an offset. Where a scheme replaced the weight (LoftQ) the change is against that one,
    since the pristine one is gone. DoRA changes the length of whole rows, so there the change has full rank
    and one of the two factors is the identity.
    """
    for name, layer in adapted_layers(model).items():
        if layer.magnitude is not None:
            change = effective_weight(layer) - layer.base_weight()
            out, inner = change.shape
            eye = torch.eye(min(out, inner), device=change.device)
            yield (name, change, eye) if inner <= out else (name, eye, change)
        else:
            A, B = pair(layer)
            yield name, layer.s * B, A


def truncate(L: Tensor, R: Tensor, rank: int) -> Truncated:
    """The best rank-`rank` approximation of L R (Eckart and Young), in float64 and without forming the product.

    With L = Q₁R₁ and Rᵀ = Q₂R₂ the singular values of L R are those of the k x k core R₁R₂ᵀ.
    """
    Q1, R1 = torch.linalg.qr(L.double())
    Q2, R2 = torch.linalg.qr(R.double().T)
    U, S, Vh = torch.linalg.svd(R1 @ R2.T, full_matrices=False)
    half = S[:rank].sqrt()
    return Truncated(
        L=(Q1 @ (U[:, :rank] * half)).float(),
        R=((half[:, None] * Vh[:rank]) @ Q2.T).float(),
        energy=float(S.square().sum()),
        dropped=float(S[rank:].square().sum()),
    )


@torch.no_grad()
def merged(model: PeftModel, base: PreTrainedModel) -> PreTrainedModel:
    """The base with every change summed into its weights in float64, each rounded once to the dtype the base has.

    `base` is the pristine one, on the CPU, and is written to; its dtype need not be that of `model`, which is left as
    it was. Raises UsageError where `model` is quantised.
    """
    packed = next((name for name, layer in adapted_layers(model).items() if layer.quantised), None)
    if packed is not None:
        raise UsageError(
            f"the base is quantised ({packed}), so the adapter cannot be merged into it; use --format adapter and "
            "merge that into the unquantised base."
        )
    for name, layer in adapted_layers(model).items():
        weight = weight_of(base.get_submodule(name))
        own = layer.base_weight() if layer.base_replaced else weight
        A, B = pair(layer)
        total = own.double() + layer.s * (B.double() @ A.double())
        if layer.magnitude is not None:
            total *= _lengthened(total, layer.magnitude.double())
        weight.copy_(total)
    return base


@torch.no_grad()
def trained_base(model: PeftModel, base: PreTrainedModel | None = None) -> PreTrainedModel:
    """The base as the run trains on it, to save beside an adapter whose scheme replaced weights (LoftQ).

    A copy of the run's own, in the run's dtype; or `base`, the pristine one, written to. That is widened first where
    the run computed in a wider dtype, which the replaced weights need.
    """
    if base is None:
        return cast(PreTrainedModel, copy.deepcopy(model).unload())
    replaced = {name: layer for name, layer in adapted_layers(model).items() if layer.base_replaced}
    for layer in replaced.values():
        base.to(torch.promote_types(base.dtype, layer.get_base_layer().weight.dtype))
    for name, layer in replaced.items():
        weight_of(base.get_submodule(name)).copy_(layer.base_weight())
    return base


@torch.no_grad()
def pristine_weight(layer: LowRankLinear) -> Tensor:
    """The base's own weight (out, in) float32; a folded pair is put back. Where LoftQ replaced it, the replacement."""
    weight = layer.base_weight()
    if layer.offset == "fold":
        assert layer.offset_A is not None, "a fold without its pair"
        assert layer.offset_B is not None, "a fold without its pair"
        weight += layer.s * (layer.offset_B @ layer.offset_A)
    return weight


@torch.no_grad()
def effective_weight(layer: LowRankLinear) -> Tensor:
    """The weight the layer acts with, (out, in), float32."""
    total = layer.base_weight() + layer.s * (layer.B @ layer.scaled_A)
    if layer.offset == "separate":
        total -= layer.s * (layer.offset_B @ layer.offset_A)
    return total if layer.magnitude is None else total * _lengthened(total, layer.magnitude)


def _lengthened(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's factor of each row (arXiv 2402.09353, eq. 5), (out, 1): its direction stays, its length is the trained."""
    return (magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None]
