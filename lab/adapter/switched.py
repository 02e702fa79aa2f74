"""The switched layer: a low-rank pair in a linear layer's place, scaling · B A x + fade · E x + bias, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.adapter.osf import dense_linear, osf_layers
from lab.structure import Form, LayerForm


class SwitchedLinear(nn.Module):
    """A linear layer after a switch, in one of three forms.

    A (rank, in) and B (out, rank) train in float32. E (out, in) is a frozen parameter, since DDP broadcasts buffers at
    every forward pass: in `delta` the weight, or what the pair leaves of it, for good; in `fading` what the pair
    leaves, times `fade`, a scalar that falls to 0; in `low_rank` it is gone. The bias is the layer's own parameter.
    """

    def __init__(
        self, form: LayerForm, shape: tuple[int, int], bias: nn.Parameter | None, device: torch.device | str
    ) -> None:
        super().__init__()
        assert form.rank is not None, "a pair without a rank"
        assert form.scaling is not None, "a pair without a scaling"
        out, inner = shape
        self.scaling, self.step, self.since = form.scaling, form.step, form.since
        # Compiled code asks whether a number has changed; a tensor it only reads.
        self.scale = nn.Parameter(torch.tensor(form.scaling, device=device), requires_grad=False)
        self.A = nn.Parameter(torch.zeros(form.rank, inner, device=device))
        self.B = nn.Parameter(torch.zeros(out, form.rank, device=device))
        self.bias = bias
        self.E: nn.Parameter | None = None
        self.fade: nn.Parameter | None = None
        if form.form != "low_rank":
            self.E = nn.Parameter(torch.zeros(out, inner, device=device), requires_grad=False)
        if form.form == "fading":
            self.fade = nn.Parameter(torch.ones((), device=device), requires_grad=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def form(self) -> LayerForm:
        """Read from what the layer holds."""
        kind: Form = "low_rank" if self.E is None else "delta" if self.fade is None else "fading"
        return LayerForm(kind, rank=self.A.shape[0], scaling=self.scaling, step=self.step, since=self.since)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out); scaled between the factors, where it is cheapest."""
        u = F.linear(x, self.A)
        y = F.linear(u * self.scale, self.B, self.bias)
        if self.E is None:
            return y
        rest = F.linear(x, self.E)
        return y + (rest if self.fade is None else rest * self.fade)

    @torch.no_grad()
    def weight_now(self) -> Tensor:
        """The weight that the layer acts with, (out, in) float32, summed in float64."""
        weight = self.scaling * (self.B.double() @ self.A.double())
        if self.E is not None:
            weight += self.E.double() * (1.0 if self.fade is None else float(self.fade))
        return weight.float()

    def drop_residual(self) -> None:
        """From fading to low rank: E and its fade are gone."""
        self.E = self.fade = None


def switched_layers(net: nn.Module) -> dict[str, SwitchedLinear]:
    """The switched layers of a model, in module order."""
    return {name: module for name, module in net.named_modules() if isinstance(module, SwitchedLinear)}


def install(net: nn.Module, name: str, form: LayerForm) -> SwitchedLinear:
    """Put an empty switched layer in a linear layer's place; its bias stays the same parameter."""
    old: Any = net.get_submodule(name)
    layer = SwitchedLinear(form, (old.out_features, old.in_features), old.bias, old.weight.device)
    _put(net, name, layer)
    return layer


def install_full(net: nn.Module, name: str) -> nn.Linear:
    """Put a linear layer with the weight that a switched layer acts with in its place; the bias stays the same."""
    old = net.get_submodule(name)
    assert isinstance(old, SwitchedLinear), f"{name} was not switched"
    linear = _linear(old)
    _put(net, name, linear)
    return linear


@contextmanager
def dense(net: nn.Module) -> Iterator[None]:
    """Within the context every layer in another form is a plain linear one, as files of stock transformers need it."""
    layers, kept = switched_layers(net), osf_layers(net)
    try:
        for name, layer in layers.items():
            _put(net, name, _linear(layer))
        for name, of in kept.items():
            _put(net, name, dense_linear(of))
        yield
    finally:
        for name, layer in {**layers, **kept}.items():
            _put(net, name, layer)


def why_not(net: nn.Module, name: str) -> str | None:
    """The reason why a layer cannot switch, as a sentence goes on after its name; None where it can."""
    module = net.get_submodule(name)
    if isinstance(module, SwitchedLinear):
        return None
    if type(module) is not nn.Linear:
        return f"is a {type(module).__name__}, and only a plain nn.Linear can be factored in its place"
    holders = [other for other, m in net.named_modules(remove_duplicate=False) if m is module]
    if len(holders) > 1:
        return f"is shared: it stands in the model as {' and '.join(holders)}"
    tied = [n for n, p in net.named_parameters(remove_duplicate=False) if p is module.weight and n != f"{name}.weight"]
    if tied:
        return f"is tied to {tied[0]}"
    return None


def _linear(layer: SwitchedLinear) -> nn.Linear:
    out, inner = layer.shape
    linear: nn.Linear = torch.nn.utils.skip_init(nn.Linear, inner, out, bias=False, device=layer.A.device)
    linear.weight = nn.Parameter(layer.weight_now())
    linear.register_parameter("bias", layer.bias)
    linear.train(layer.training)
    return linear


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    """In a module's place among its parent's, so that the order of parameters stays."""
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
