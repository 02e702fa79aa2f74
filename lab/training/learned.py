"""What a LoRA run began with and what it learned: a row per module on disk, medians and sums in the record."""

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lab.adapter.delta import delta_factors, pristine_weight
from lab.adapter.layer import adapted_layers
from lab.adapter.learned import first_step, learned
from lab.cache import write_atomically
from lab.init.svd_cache import triples_at
from lab.training.callbacks import AfterStep
from lab.training.module import CausalLM

log = logging.getLogger(__name__)

INIT, LEARNED, FIRST_STEP = "init.csv", "learned.csv", "first_step.csv"
K, EPSILON = 10, 0.5  # intruder dimensions: leading directions tested, and an intruder's greatest cosine (issue 4)
LARGEST_SIDE = 1024  # smaller side beyond which W's whole basis is not computed: its cost grows with the cube
SUMMED, LEAST = ("intruders",), ("intruder_min_cosine",)  # over the modules; of all other measures the median is taken

Row = dict[str, Any]


class FirstStepWatch(AfterStep):
    """Compares the first optimizer step with the gradient that was gathered at step 0; writes first_step.csv.

    The step is s(B₁A₁ − B₀A₀); the gradient is that of the base on the examples that the init or the rank strategy
    looked at, not of the step's own batch. Without such a gradient nothing is measured: it would cost a pass.
    """

    def __init__(self, run_dir: Path, gradients: Mapping[str, Tensor]) -> None:
        self.run_dir, self.gradients = run_dir, dict(gradients)
        self.before: dict[str, tuple[Tensor, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the factors of step 0."""
        if self.gradients and pl_module.progress.step == 0 and trainer.is_global_zero:
            layers = adapted_layers(pl_module.net)
            self.before = {
                name: (layer.scaled_A.detach().clone(), layer.B.detach().clone()) for name, layer in layers.items()
            }

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """After the first step, measure and let the gradients go."""
        if not self.before:
            return
        began = time.perf_counter()
        rows = []
        for name, layer in adapted_layers(module.net).items():
            A, B = self.before[name]
            L = layer.s * torch.cat([layer.B.detach(), -B], dim=1)
            R = torch.cat([layer.scaled_A.detach(), A])
            found = first_step(L, R, self.gradients[name].to(L.device), A.shape[0])
            measures = {} if found is None else vars(found)
            rows.append({"module": name} | {f"first_step_{key}": value for key, value in measures.items()})
        write_rows(self.run_dir / FIRST_STEP, rows)
        self.before, self.gradients = {}, {}
        if module.progress.step < module.total_steps:  # what follows a step is clocked with the next one
            module.progress.train_seconds -= time.perf_counter() - began


@torch.no_grad()
def measure(model: Any, run_dir: Path) -> dict[str, float | None]:
    """Write learned.csv of the live adapters and return the scalars for the record, named `learned_<measure>`.

    The base's singular basis comes from the SVD cache. Layers whose smaller side exceeds LARGEST_SIDE have no overlaps
    and no intruders, and DoRA, whose change has full rank, has no row at all: both are logged with the reason.
    """
    layers = adapted_layers(model)
    if any(layer.magnitude is not None for layer in layers.values()):
        log.info("what was learned is not measured: DoRA's change has full rank, and its factors do not describe it.")
        return {}
    first = {row["module"]: row for row in _read(run_dir / FIRST_STEP)}
    wide = [name for name, layer in layers.items() if min(layer.base_weight().shape) > LARGEST_SIDE]
    if wide:
        log.info(
            "no overlap with the base is measured on %d of %d modules (%s ...): their smaller side exceeds %d, and the "
            "whole basis of such a weight would cost too much.",
            *(len(wide), len(layers), wide[0], LARGEST_SIDE),
        )
    rows: list[Row] = []
    for name, L, R in delta_factors(model):
        layer = layers[name]
        weight, rank = pristine_weight(layer), layer.rank
        left = right = None
        if name not in wide:
            basis = triples_at(weight, torch.arange(min(weight.shape)))
            left, right = basis.U, basis.Vh.T
        found = learned(L, R, weight, left, right, rank=rank, k=min(K, *weight.shape), epsilon=EPSILON)
        rows.append({"module": name, "rank": rank, **found, **first.get(name, {})})
    write_rows(run_dir / LEARNED, rows)
    names = [name for name in rows[0] if name not in ("module", "rank") and not name.startswith("first_step")]
    metrics = {f"learned_{name}": _summary(name, rows) for name in names}
    return metrics | {name: _summary(name, rows) for name in ("first_step_cosine", "first_step_cosine_best")}


def _summary(name: str, rows: Sequence[Row]) -> float | None:
    values = [float(row[name]) for row in rows if row.get(name) not in (None, "")]
    if not values:
        return None
    return sum(values) if name in SUMMED else min(values) if name in LEAST else median(values)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file of rows that need not all have every column."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
