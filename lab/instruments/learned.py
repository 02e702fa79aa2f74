"""Weight change that a LoRA run learned, measured: a row per module on disk, medians and sums in the record."""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track

from lab.adapter.delta import delta_factors, pristine_weight
from lab.adapter.layer import adapted_layers
from lab.init.svd_cache import leading_triples, triples_at
from lab.instruments.first_step import FEW, LARGEST_SIDE
from lab.instruments.per_module_csv import FIRST_STEP, LEARNED, Row, read_rows, write_rows
from lab.layer import evenly_spaced
from lab.process import heartbeat
from lab.spectral.weight_change import change_measures
from lab.training.progress import console

log = logging.getLogger(__name__)

K, EPSILON = 10, 0.5  # intruder dimensions: leading directions tested, and an intruder's greatest cosine (issue 4)
SUMMED, LEAST = ("intruders",), ("intruder_min_cosine",)  # over the modules; of all other measures the median is taken


@torch.no_grad()
def measure(model: Any, run_dir: Path) -> dict[str, float | None]:
    """Write learned.csv of the live adapters and return the scalars for the record, named `learned_<measure>`.

    The base's singular vectors come from the SVD cache, for overlaps its leading ones. Intruders take all of them: of
    layers whose smaller side exceeds LARGEST_SIDE they are counted on FEW. DoRA, whose change has full rank, has no row
    at all. Both are logged with the reason.
    """
    layers = adapted_layers(model)
    if any(layer.magnitude is not None for layer in layers.values()):
        log.info("what was learned is not measured: DoRA's change has full rank, and its factors do not describe it.")
        return {}
    first = {row["module"]: row for row in read_rows(run_dir / FIRST_STEP)}
    wide = [name for name, layer in layers.items() if min(layer.base_weight().shape) > LARGEST_SIDE]
    leading_only = set(wide) - set(evenly_spaced(wide, FEW))
    if leading_only:
        log.info(
            "intruders are counted on %d of %d modules, %d of them wider than %d: they take a weight's whole basis.",
            *(len(layers) - len(leading_only), len(layers), len(wide) - len(leading_only), LARGEST_SIDE),
        )
    rows: list[Row] = []
    shown: dict[str, Any] = {"console": console, "disable": not console.is_terminal, "transient": True}
    for name, L, R in track(delta_factors(model), "what was learned", total=len(layers), **shown):
        heartbeat.beat()
        layer = layers[name]
        weight, rank = pristine_weight(layer), layer.rank
        k, smaller = min(K, *weight.shape), min(weight.shape)
        if name in leading_only:
            own = leading_triples(weight, k, "randomised")
        else:
            own = triples_at(weight, torch.arange(smaller))
        measures = change_measures(L, R, weight, own.U, own.Vh.T, rank=rank, k=k, epsilon=EPSILON)
        rows.append({"module": name, "rank": rank, **measures, **first.get(name, {})})
    write_rows(run_dir / LEARNED, rows)
    names = [name for name in rows[0] if name not in ("module", "rank") and not name.startswith("first_step")]
    metrics = {f"learned_{name}": _summary(name, rows) for name in names}
    metrics["learned_intruders_modules"] = sum(row["intruders"] is not None for row in rows)
    return metrics | {name: _summary(name, rows) for name in ("first_step_cosine", "first_step_cosine_best")}


def _summary(name: str, rows: Sequence[Row]) -> float | None:
    values = [float(row[name]) for row in rows if row.get(name) not in (None, "")]
    if not values:
        return None
    return sum(values) if name in SUMMED else min(values) if name in LEAST else median(values)
