"""The first optimizer step of a LoRA run, held against the gradient it followed and the best step of its rank."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lab.adapter.layer import adapted_layers
from lab.instruments.layer_view import LayerViews
from lab.instruments.per_module_csv import FIRST_STEP, Row, write_rows
from lab.layer import Target, evenly_spaced
from lab.process import heartbeat
from lab.spectral.weight_change import first_step
from lab.training.module import CausalLM
from lab.training.step import Instrument

log = logging.getLogger(__name__)

MOST_BYTES = 2**28  # of gradients held during the step; beyond it, and for wide layers, a few stand for all
LARGEST_SIDE, FEW = 1024, 8  # the best step takes an SVD of the gradient, whose cost grows with the smaller side's cube


class FirstStepWatch(Instrument):
    """Compares s(B₁A₁ − B₀A₀) with the whole step's gradient ∂L/∂W, of its own batch; writes first_step.csv.

    Not with DoRA, whose step is no product, nor of a layer that the step left not finite, which ends the run. Training
    is bitwise the same without it.
    """

    def __init__(self, run_dir: Path, targets: Sequence[Target]) -> None:
        self.run_dir, self.targets, self.all = run_dir, sample_of(targets), len(targets)
        self.before: dict[str, tuple[Tensor, Tensor]] = {}
        self.gradients: dict[str, Tensor] = {}

    def before_step(self, trainer: Trainer, module: CausalLM) -> None:
        """Before the very first micro-batch: keep the factors and listen for gradients."""
        if module.run.progress.step > 0:
            return
        layers = adapted_layers(module.net)
        if any(layer.magnitude is not None for layer in layers.values()):
            return
        names = [target.name for target in self.targets]
        if len(names) < self.all:
            log.info(
                "the first step is compared with the gradient on %d of %d modules (%s ...): on all it would cost too "
                "much.",
                *(len(names), self.all, names[0]),
            )
        factors = {name: (layers[name].scaled_A, layers[name].B) for name in names}
        self.before = {name: (A.detach().clone(), B.detach().clone()) for name, (A, B) in factors.items()}
        self.layers = LayerViews(module.net, self.targets, self.run_dir, module.run.config.hardware.compile)
        self.layers.listen(names)

    def gradients_ready(self, trainer: Trainer, module: CausalLM) -> None:
        """The gradients are there: take them on the main process."""
        if self.before:
            self.gradients = self.layers.gradients(list(self.before), dict.fromkeys(self.before, 0))

    @heartbeat.long()
    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """After the first step, measure and let everything go."""
        if not self.before:
            return
        with module.run.clock.spent("analysis"):
            self._compare(trainer, module)
        self.before, self.gradients = {}, {}
        del self.layers

    def _compare(self, trainer: Trainer, module: CausalLM) -> None:
        rows: list[Row] = []
        layers = adapted_layers(module.net)
        for name, gradient in self.gradients.items():
            layer, (A, B) = layers[name], self.before[name]
            L = layer.s * torch.cat([layer.B.detach(), -B], dim=1)
            R = torch.cat([layer.scaled_A.detach(), A])
            finite = bool(torch.isfinite(L).all() and torch.isfinite(R).all())
            step = first_step(L, R, gradient, A.shape[0]) if finite else None
            measures = {} if step is None else vars(step)
            rows.append({"module": name} | {f"first_step_{key}": value for key, value in measures.items()})
        if trainer.is_global_zero:
            write_rows(self.run_dir / FIRST_STEP, rows)


def sample_of(targets: Sequence[Target]) -> list[Target]:
    """All layers where that is cheap, else a few, evenly spaced, whose gradients fit into MOST_BYTES."""
    if bytes_of(targets) <= MOST_BYTES and all(min(target.shape) <= LARGEST_SIDE for target in targets):
        return list(targets)
    by_name = {target.name: target for target in targets}
    for count in range(min(FEW, len(targets)), 1, -1):
        few = [by_name[name] for name in evenly_spaced(list(by_name), count)]
        if bytes_of(few) <= MOST_BYTES:
            return few
    return list(targets[:1])


def bytes_of(targets: Sequence[Target]) -> int:
    """Of the gradients of these layers, in float32."""
    return 4 * sum(math.prod(target.shape) for target in targets)
