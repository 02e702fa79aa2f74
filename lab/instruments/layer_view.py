"""Views of layers in training: their weights, gradients, momenta and applied updates, read and never written.

Everything is (out, in). A gradient is ∂L/∂W of the step's whole loss: summed over micro-batches and processes, not yet
clipped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lab.adapter.delta import effective_weight, pristine_weight
from lab.adapter.layer import adapted_layers
from lab.adapter.switched import SwitchedLinear
from lab.instruments.initial_weights import Lazy, OnDisk
from lab.layer import Target, weight_of
from lab.model import base_of
from lab.spectral.noise import left_directions
from lab.spectral.outside import outside
from lab.training.distributed import rank, world


class FullWeightView:
    """A layer whose whole weight trains: everything is there to be read."""

    def __init__(self, module: Any, transposed: bool) -> None:
        self.module = self._module = module
        self._transposed = transposed
        self._kept: Tensor | None = None

    def listen(self) -> None:
        """Nothing to do: the gradient gathers where the optimizer wants it."""

    def gradient(self, owner: int) -> Tensor | None:
        """The gradient, on the process that owns the layer."""
        stored = self._module.weight.grad
        return self._upright(stored) if stored is not None and owner == rank() else None

    def weight(self) -> Tensor:
        """The weight as it is now."""
        return weight_of(self._module).detach()

    def keep(self) -> int:
        """Remember the weight before the optimizer's step; returns the bytes it takes."""
        self._kept = self.weight().clone()
        return self._kept.nbytes

    def update(self) -> Tensor:
        """The step's change of the weight kept, which is forgotten."""
        kept, self._kept = self._kept, None
        assert kept is not None, "no weight was kept"
        return self.weight().to(torch.float32, copy=True).sub_(kept)

    def momentum(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """The optimizer's first moment of the weight, where it holds one."""
        state = optimizer.state.get(self._module.weight, {})
        stored = state.get("exp_avg", state.get("momentum"))
        return None if stored is None else self._upright(stored)

    def _upright(self, stored: Tensor) -> Tensor:
        return stored.detach().T if self._transposed else stored.detach()


class LowRankView:
    """A layer with a low-rank pair, seen as the weight it acts with, W + s B A.

    No parameter holds that weight, so its gradient is summed from what passes through the layer, Σ δᵀx with x the
    layer's input and δ = ∂L/∂output, in steps with a tick only. A hook on the output tensor sees δ once, also where
    gradient checkpointing runs the layer's forward twice.
    """

    def __init__(self, layer: Any) -> None:
        self.module = self._layer = layer
        self._kept: tuple[Tensor, ...] = ()

    def listen(self) -> None:
        """Sum the gradient from the next forward pass on."""
        layer = self._layer
        total = self._sum = torch.zeros(layer.B.shape[0], layer.A.shape[1], device=layer.A.device)

        def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            x = args[0].detach()

            def backward(delta: Tensor) -> None:
                rows = delta.detach().reshape(-1, delta.shape[-1]).float()
                with torch.autocast(delta.device.type, enabled=False):
                    total.addmm_(rows.T, x.reshape(-1, x.shape[-1]).float())

            output.register_hook(backward)

        self._handle = layer.register_forward_hook(forward)

    def gradient(self, owner: int) -> Tensor | None:
        """As FullWeightView; every process calls it."""
        self._handle.remove()
        total = self._sum
        del self._sum
        if world() > 1:
            dist.reduce(total, dst=owner)
            total.div_(world())  # every process's loss is scaled by their number, for DDP's mean over them
        return total if owner == rank() else None

    def weight(self) -> Tensor:
        """The weight that the layer acts with."""
        return effective_weight(self._layer)

    def keep(self) -> int:
        """Remember A and B, or with DoRA, whose change is no product, the whole weight."""
        layer = self._layer
        pair = layer.scaled_A.detach().clone(), layer.B.detach().clone()
        self._kept = pair if layer.magnitude is None else (effective_weight(layer),)
        return sum(tensor.nbytes for tensor in self._kept)

    def update(self) -> Tensor:
        """The change of the product, s B₁A₁ − s B₀A₀: what is frozen never enters, so nothing cancels."""
        layer, kept, self._kept = self._layer, self._kept, ()
        if len(kept) == 1:
            return effective_weight(layer) - kept[0]
        A, B = kept
        return layer.s * (layer.B.detach() @ layer.scaled_A.detach() - B @ A)

    def momentum(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """None: the optimizer holds moments of A and B, and none of their product."""
        return None


class SwitchedView(LowRankView):
    """A layer that a switch made low-rank, seen as the weight it acts with, s B A and what is left beside it."""

    def weight(self) -> Tensor:
        """The weight that the layer acts with."""
        weight: Tensor = self._layer.weight_now()
        return weight

    def keep(self) -> int:
        """Remember A and B: what is frozen, or fades, is no step of the optimizer."""
        self._kept = self._layer.A.detach().clone(), self._layer.B.detach().clone()
        return sum(tensor.nbytes for tensor in self._kept)

    def update(self) -> Tensor:
        """The change of the product, s B₁A₁ − s B₀A₀."""
        (A, B), self._kept, layer = self._kept, (), self._layer
        change: Tensor = layer.scaling * (layer.B.detach() @ layer.A.detach() - B @ A)
        return change


View = FullWeightView | LowRankView


class LayerViews:
    """Layers of a model in training, each through the view of its form, which is read anew at every tick.

    Where blocks are compiled (`compiled`), a step whose gradients are listened for runs eagerly.
    """

    initial: Mapping[str, Tensor]  # W₀, read where it is asked for
    directions: Mapping[str, Tensor]  # W₀'s left singular vectors, likewise

    def __init__(self, net: Any, targets: Sequence[Target], run_dir: Path, compiled: bool) -> None:
        self._pairs, self._net = adapted_layers(net), base_of(net)
        self._transposed = {target.name: target.transposed for target in targets}
        self._on_disk, self._compiled = OnDisk(run_dir), compiled
        self._views: dict[str, View] = {name: self._view(name) for name in self._transposed}
        self.initial = Lazy(self._views, self._initial)
        self.directions = Lazy(self._views, self._directions)

    def save_initial(self) -> None:
        """Put W₀ of what trains in full on disk, from where exact ticks read it a layer at a time."""
        full = {name: view.weight() for name, view in self._views.items() if name not in self._pairs}
        if full:
            self._on_disk.write(full)

    def listen(self, names: Sequence[str]) -> None:
        """Before a step's first micro-batch: these layers' gradients will be asked for."""
        self._views |= {name: self._view(name) for name in names if not self._stands(name)}
        self._run_eagerly(names, "force_eager")  # a compiled block would not call the hooks of its parts
        for name in names:
            self._views[name].listen()

    def gradients(self, names: Sequence[str], owner: Mapping[str, int]) -> dict[str, Tensor]:
        """After the step's backward passes: the gradients of the layers that this process owns; every one calls it."""
        self._run_eagerly(names, "default")
        return _present({name: self._views[name].gradient(owner[name]) for name in names})

    def outside(self, gradients: Mapping[str, Tensor]) -> dict[str, float | None]:
        """Of layers that a switch made low-rank: the share of their gradients' energy that the pair cannot move."""
        pairs = {name: self._net.get_submodule(name) for name in gradients}
        return {
            name: outside(gradients[name], pair.B.detach(), pair.A.detach())
            for name, pair in pairs.items()
            if isinstance(pair, SwitchedLinear)
        }

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: self._views[name].weight() for name in names}

    def keep(self, names: Sequence[str]) -> int:
        """Remember the weights before the optimizer's step; returns the bytes it takes."""
        self._kept = list(names)
        return sum(self._views[name].keep() for name in names)

    def updates(self) -> dict[str, Tensor]:
        """What the step has added to the weights kept; forgets them."""
        return {name: self._views[name].update() for name in self._kept}

    def momenta(self, names: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The optimizer's first moments of the weights themselves, where it holds them."""
        return _present({name: self._views[name].momentum(optimizer) for name in names})

    def _view(self, name: str) -> View:
        module = self._net.get_submodule(name)
        if isinstance(module, SwitchedLinear):
            return SwitchedView(module)
        return LowRankView(module) if name in self._pairs else FullWeightView(module, self._transposed[name])

    def _stands(self, name: str) -> bool:
        """True while the module that a view is of is still in its place."""
        return self._views[name].module is self._net.get_submodule(name)

    def _initial(self, name: str) -> Tensor:
        layer = self._pairs.get(name)
        return self._on_disk.weight(name) if layer is None else pristine_weight(layer)

    def _directions(self, name: str) -> Tensor:
        layer = self._pairs.get(name)
        if layer is None:
            return self._on_disk.directions(name, self._views[name].weight().device)
        return left_directions(pristine_weight(layer).to(layer.A.device))

    def _run_eagerly(self, names: Sequence[str], stance: str) -> None:
        if self._compiled and any(isinstance(self._views[name], LowRankView) for name in names):
            torch.compiler.set_stance(stance)


def _present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
