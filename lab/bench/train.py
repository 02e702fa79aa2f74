"""Training speed: this lab, a bare PyTorch loop, and transformers.Trainer + peft, interleaved in one call.

Each contender runs in a process of its own, on the same base, data, rank and global batch, and reports real
(unpadded) tokens per second over its last steps and its peak memory above the imports: of the device's allocator on a
GPU, else resident.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from lab.bench import BenchRow, with_one_gpu
from lab.bench.ground import GROUNDS
from lab.training.progress import console


def run(quick: bool, model: str = "base", batch: int | None = None) -> list[BenchRow]:
    """Medians over the repeats, as rows of (contender, tokens per second, peak bytes, ratio of the lab to it, MFU)."""
    repeats, steps = (1, 12) if quick else (3, 24)
    ground = GROUNDS[model]
    examples = ground.batch if batch is None else batch
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ground.contenders}
    for repeat in range(repeats):
        for name in ground.contenders if repeat == 0 else reversed(ground.contenders):
            console.print(f"repeat {repeat + 1} of {repeats}: {name}")
            results[name].append(measure(name, steps, model, examples))
    return _rows(results, {"model": model, "batch": examples, "repeats": repeats, "same_batches": ground.same_batches})


def measure(name: str, steps: int, model: str, batch: int) -> dict[str, Any]:
    """What `lab.bench.contender` prints of one contender."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "lab.bench.contender", name, str(steps), folder, model, str(batch)],
            env=with_one_gpu(),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _rows(results: dict[str, list[dict[str, Any]]], common: dict[str, Any]) -> list[BenchRow]:
    from lab.bench.device import bench_device, fastest_dtype, name_of, product_flops, utilisation

    device = bench_device()
    dtype = fastest_dtype(device)
    ceiling = product_flops(device, dtype)
    common = {**common, "device": name_of(device), "ceiling_flops": ceiling, "ceiling_dtype": str(dtype)[6:]}
    rows = []
    for name, items in results.items():
        middle = {key: _middle([item[key] for item in items]) for key in items[0]}
        speed, parameters = middle["tokens_per_second"], middle["parameters"]
        rows.append({"contender": name, **common, **middle, "mfu": utilisation("lora", parameters, speed, ceiling)})
    for row in rows:
        row["lab_ratio"] = rows[0]["tokens_per_second"] / row["tokens_per_second"]
    _show(rows)
    return rows


def _middle(values: list[Any]) -> Any:
    return None if None in values else statistics.median(values)


def _show(rows: list[BenchRow]) -> None:
    from rich.table import Table

    first = rows[0]
    batches = "the same batches" if first["same_batches"] else "each its own batches"
    title = f"Training {first['model']}, {first['device']}, batch {first['batch']}, medians of {first['repeats']}"
    caption = f"{batches}; MFU of {first['ceiling_flops'] / 1e12:.3g} TFLOP/s in {first['ceiling_dtype']}, measured"
    table = Table(title=title, caption=caption)
    headings = ("contender", "real tokens/s", "peak MB above imports", "lab is faster by", "MFU", "loss at the end")
    for column in headings:
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in rows:
        table.add_row(
            row["contender"],
            f"{row['tokens_per_second']:.0f}",
            "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['lab_ratio']:.2f} x",
            f"{row['mfu']:.1%}",
            f"{row['loss']:.3f}",
        )
    console.print(table)
