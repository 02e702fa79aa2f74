"""Training speed: this lab, a bare PyTorch loop, and transformers.Trainer + peft, interleaved in one call.

Each contender runs in a process of its own, on the same base, data, rank and global batch, and reports real
(unpadded) tokens per second over its last steps and its peak resident memory above the imports.
"""

import json
import statistics
import subprocess
import sys
import tempfile

from lab.bench import BenchRow
from lab.training.progress import console

CONTENDERS = ("lab", "bare loop", "Trainer + peft", "Trainer + peft bf16")
BATCH, RANK, LR, WARM_UP = 16, 16, 1e-3, 4  # WARM_UP steps are not timed


def run(quick: bool) -> list[BenchRow]:
    """Medians over the repeats, as rows of (contender, tokens per second, peak bytes, ratio of the lab to it)."""
    repeats, steps = (1, 12) if quick else (3, 24)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for repeat in range(repeats):
        for name in CONTENDERS[repeat % 2 :: 1] if repeat == 0 else reversed(CONTENDERS):
            console.print(f"repeat {repeat + 1} of {repeats}: {name}")
            results[name].append(_measure(name, steps))
    return _rows(results, repeats)


def _measure(name: str, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "lab.bench.contender", name, str(steps), folder],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _rows(results: dict[str, list[dict[str, float]]], repeats: int) -> list[BenchRow]:
    from rich.table import Table

    from lab.training.hardware import cpu_name

    median = {
        name: {key: statistics.median(item[key] for item in items) for key in items[0]}
        for name, items in results.items()
    }
    table = Table(title=f"Training, {cpu_name()}, medians of {repeats}")
    for column in ("contender", "real tokens/s", "peak MB above imports", "lab is faster by", "loss at the end"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    rows = []
    for name, value in median.items():
        ratio = median["lab"]["tokens_per_second"] / value["tokens_per_second"]
        rows.append({"contender": name, "repeats": repeats, "device": cpu_name(), "lab_ratio": ratio, **value})
        table.add_row(
            name,
            f"{value['tokens_per_second']:.0f}",
            f"{value['peak_bytes'] / 1e6:.0f}",
            f"{ratio:.2f} x",
            f"{value['loss']:.3f}",
        )
    console.print(table)
    return rows
