"""Views of layers in training: their weights, gradients, momenta and applied updates, read and never written.

Everything is (out, in). A gradient is ∂L/∂W of the step's whole loss: summed over micro-batches and processes, not yet
clipped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lab.adapter.delta import effective_weight
from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.instruments.initial_weights import Directions, KeptDirections, OnDisk, Pristine
from lab.layer import Target, weight_of
from lab.ledger import Mode
from lab.training.distributed import rank, world
from lab.training.run import StructuredModel


class LayerView(Protocol):
    """Some layers of a model in training, as an instrument sees them."""

    initial: Mapping[str, Tensor]  # W₀, read where it is asked for
    directions: Mapping[str, Tensor]  # W₀'s left singular vectors, likewise

    def save_initial(self) -> None:
        """Before the first step, on the main process: keep what of W₀ the model will not hold."""
        ...

    def listen(self, names: Sequence[str]) -> None:
        """Before a step's first micro-batch: these layers' gradients will be asked for."""
        ...

    def gradients(self, names: Sequence[str], owner: Mapping[str, int]) -> dict[str, Tensor]:
        """After the step's backward passes: the gradients of the layers that this process owns; every one calls it."""
        ...

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The weights as they are now."""
        ...

    def keep(self, names: Sequence[str]) -> int:
        """Remember the weights before the optimizer's step; returns the bytes it takes."""
        ...

    def updates(self) -> dict[str, Tensor]:
        """What the step has added to the weights kept; forgets them."""
        ...

    def momenta(self, names: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The optimizer's first moments of the weights themselves, where it holds them."""
        ...


class LayerViews:
    """The layers of a model, each through the view of its form."""

    def __init__(self, model: StructuredModel, targets: Sequence[Target], run_dir: Path, compiled: bool) -> None:
        self._model = model
        pairs = model.structure.pairs
        full = [target for target in targets if target.name not in pairs]
        low = [target for target in targets if target.name in pairs]
        self._views: list[tuple[set[str], LayerView]] = []
        if full:
            self._views.append(({t.name for t in full}, FullWeightView(model.net, full, run_dir)))
        if low:
            self._views.append(({t.name for t in low}, LowRankView(model.net, low, compiled)))
        self.initial: Mapping[str, Tensor] = _Chained([(names, view.initial) for names, view in self._views])
        self.directions: Mapping[str, Tensor] = _Chained([(names, view.directions) for names, view in self._views])

    def mode_of(self, name: str) -> tuple[Mode, int | None]:
        """The layer's mode, as the ledger has it, and its trainable rank."""
        layer = self._model.structure.layers[name]
        return ("full", None) if layer.rank is None else ("low_rank", layer.rank)

    def save_initial(self) -> None:
        """As LayerView, of all views; so are the others."""
        for _, view in self._views:
            view.save_initial()

    def listen(self, names: Sequence[str]) -> None:
        for own, view in self._views:
            view.listen([name for name in names if name in own])

    def gradients(self, names: Sequence[str], owner: Mapping[str, int]) -> dict[str, Tensor]:
        return self._gather(names, lambda view, own: view.gradients(own, owner))

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        return self._gather(names, lambda view, own: view.weights(own))

    def keep(self, names: Sequence[str]) -> int:
        return sum(view.keep([name for name in names if name in own]) for own, view in self._views)

    def updates(self) -> dict[str, Tensor]:
        return {name: update for _, view in self._views for name, update in view.updates().items()}

    def momenta(self, names: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        return self._gather(names, lambda view, own: view.momenta(own, optimizer))

    def _gather(
        self, names: Sequence[str], read: Callable[[LayerView, list[str]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        parts = [read(view, [name for name in names if name in own]) for own, view in self._views]
        return {name: tensor for part in parts for name, tensor in part.items()}


class _Chained(Mapping[str, Tensor]):
    """Mappings of several views as one; a tensor is read when it is asked for."""

    def __init__(self, parts: Sequence[tuple[set[str], Mapping[str, Tensor]]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        part = next((part for names, part in self._parts if name in names), None)
        if part is None:
            raise KeyError(name)
        return part[name]

    def __iter__(self) -> Iterator[str]:
        return (name for names, _ in self._parts for name in names)

    def __len__(self) -> int:
        return sum(len(names) for names, _ in self._parts)


class FullWeightView:
    """Layers whose whole weight trains: everything is there to be read."""

    def __init__(self, net: nn.Module, targets: Sequence[Target], run_dir: Path) -> None:
        modules: dict[str, Any] = dict(net.named_modules())
        self._modules = {target.name: modules[target.name] for target in targets}
        self._transposed = {target.name for target in targets if target.transposed}
        self._kept: dict[str, Tensor] = {}
        self._on_disk = OnDisk(run_dir)
        self._kept_directions = KeptDirections(self._on_disk, weight_of(self._modules[targets[0].name]).device)
        self.initial: Mapping[str, Tensor] = self._on_disk
        self.directions: Mapping[str, Tensor] = self._kept_directions

    def listen(self, names: Sequence[str]) -> None:
        """Nothing to do: the gradients gather where the optimizer wants them."""

    def gradients(self, names: Sequence[str], owner: Mapping[str, int]) -> dict[str, Tensor]:
        own = {name: self._modules[name].weight.grad for name in names if owner[name] == rank()}
        return {name: self._upright(name, grad) for name, grad in own.items() if grad is not None}

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: weight_of(self._modules[name]).detach() for name in names}

    def keep(self, names: Sequence[str]) -> int:
        self._kept = {name: weight.clone() for name, weight in self.weights(names).items()}
        return sum(weight.nbytes for weight in self._kept.values())

    def updates(self) -> dict[str, Tensor]:
        kept, self._kept = self._kept, {}
        return {name: weight.float().sub_(kept[name]) for name, weight in _copies(self.weights(list(kept)))}

    def momenta(self, names: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        states = {name: optimizer.state.get(self._modules[name].weight, {}) for name in names}
        held = {name: state.get("exp_avg", state.get("momentum")) for name, state in states.items()}
        return {name: self._upright(name, moment) for name, moment in held.items() if moment is not None}

    def save_initial(self) -> None:
        """Put W₀ on disk, from where exact ticks read it a layer at a time."""
        self._on_disk.write(self.weights(list(self._modules)))
        self._kept_directions.forget()

    def _upright(self, name: str, stored: Tensor) -> Tensor:
        return stored.detach().T if name in self._transposed else stored.detach()


def _copies(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights.items():
        yield name, weight.to(torch.float32, copy=True)


class LowRankView:
    """Layers with a low-rank pair, seen as the weight they act with, W + s B A (out, in).

    No parameter holds that weight, so its gradient is summed from what passes through the layer, Σ δᵀx with x the
    layer's input and δ = ∂L/∂output, in steps with a tick only. A hook on the output tensor sees δ once, also where
    gradient checkpointing runs the layer's forward twice. Where blocks are compiled such a step runs eagerly.
    """

    def __init__(self, net: Any, targets: Sequence[Target], compiled: bool) -> None:
        layers = adapted_layers(net)
        self._compiled = compiled
        self._layers = {target.name: layers[target.name] for target in targets}
        self._sums: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        self.initial: Mapping[str, Tensor] = Pristine(self._layers)
        self.directions: Mapping[str, Tensor] = Directions(self.initial, self._layers[targets[0].name].A.device)

    def save_initial(self) -> None:
        """Nothing to do: the base is frozen."""

    def listen(self, names: Sequence[str]) -> None:
        if self._compiled:
            torch.compiler.set_stance("force_eager")  # a compiled block would not call the hooks of its parts
        for name in names:
            layer = self._layers[name]
            shape = (layer.B.shape[0], layer.A.shape[1])
            self._sums[name] = torch.zeros(shape, device=layer.A.device)
            self._handles.append(layer.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Any:
        def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            x = args[0].detach()

            def backward(delta: Tensor) -> None:
                rows = delta.detach().reshape(-1, delta.shape[-1]).float()
                with torch.autocast(delta.device.type, enabled=False):
                    self._sums[name].addmm_(rows.T, x.reshape(-1, x.shape[-1]).float())

            output.register_hook(backward)

        return forward

    def gradients(self, names: Sequence[str], owner: Mapping[str, int]) -> dict[str, Tensor]:
        sums, self._sums = self._sums, {}
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._compiled:
            torch.compiler.set_stance("default")
        if world() > 1:
            for name in names:
                dist.reduce(sums[name], dst=owner[name])
            # Every process's loss is scaled by their number, for DDP's mean over them.
            sums = {name: total.div_(world()) for name, total in sums.items()}
        return {name: sums[name] for name in names if owner[name] == rank()}

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: effective_weight(self._layers[name]) for name in names}

    def keep(self, names: Sequence[str]) -> int:
        self._kept = {name: _pair(self._layers[name]) for name in names}
        return sum(tensor.nbytes for pair in self._kept.values() for tensor in pair)

    def updates(self) -> dict[str, Tensor]:
        """The change of the product, s B₁A₁ − s B₀A₀: what is frozen never enters, so nothing cancels."""
        kept, self._kept = self._kept, {}
        updates = {}
        for name, before in kept.items():
            layer = self._layers[name]
            if len(before) == 1:
                updates[name] = effective_weight(layer) - before[0]
            else:
                A, B = before
                updates[name] = layer.s * (layer.B.detach() @ layer.scaled_A.detach() - B @ A)
        return updates

    def momenta(self, names: Sequence[str], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """None: the optimizer holds moments of A and B, and none of their product."""
        return {}


def _pair(layer: LowRankLinear) -> tuple[Tensor, ...]:
    """A and B, or with DoRA, whose change is no product, the whole weight."""
    if layer.magnitude is not None:
        return (effective_weight(layer),)
    return layer.scaled_A.detach().clone(), layer.B.detach().clone()
