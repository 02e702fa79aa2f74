"""Waiting times of a user: for answers to questions and mistakes, and for the default job, command to exported adapter.

Every row is a process as a user would start it, timed from outside; with `busy`, beside others that keep cores busy.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import SHORT_WAITS
from lab.training.progress import console

ANSWERS = {  # what is asked -> (arguments, the most seconds it should take, by design section 3)
    "--help": (["--help"], 1.5),
    "an unknown key": (["schedule.max_epoch=3"], 1.5),
    "an unknown option": (["init=svdd"], 1.5),
    "a value of the wrong type": (["rank=many"], 1.5),
    "a hub name without a network": (["model=pretrained", "model.name_or_path=no-such/model"], 3.0),
    "a rank no layer can have": (["rank=100000"], None),
}
JOB = ("init=svd", "rank=16")
JOB_SECONDS, JOB_MB = 90.0, 1500.0  # of issue 2
NEIGHBOURS, SLOWER = 2, 2.5  # busy processes; how many times as long a job may take beside them, on two cores
NEIGHBOUR = "import torch\ntorch.set_num_threads(1)\na = torch.randn(512, 512)\nwhile True: a @ a"


def run(quick: bool, busy: bool = False) -> list[dict[str, Any]]:
    """A row per question, of medians, and one of the default job with its memory and where its seconds went.

    With `busy`, the default job alone and beside busy processes, in turns.
    """
    if busy:
        return beside_others(1 if quick else 5)
    from rich.table import Table

    from lab.training.hardware import cpu_name

    rows: list[dict[str, Any]] = []
    for name, (arguments, limit) in ANSWERS.items():
        seconds = [seconds_of(arguments, works=name == "--help")[0] for _ in range(1 if quick else 5)]
        rows.append({"asked": name, "seconds": statistics.median(seconds), "target": limit})
    if not quick:
        seconds_of_job, record = seconds_of(list(JOB), works=True)
        job = {"asked": " ".join(JOB), "seconds": seconds_of_job, "target": JOB_SECONDS, "target_mb": JOB_MB}
        rows.append({**job, "peak_mb": record["peak_memory_bytes"] / 1e6, "parts": record["seconds"]})
    table = Table(title=f"From command to answer, {cpu_name()}")
    for column in ("asked", "seconds", "target"):
        table.add_column(column, justify="left" if column == "asked" else "right")
    for row in rows:
        table.add_row(row["asked"], f"{row['seconds']:.1f}", "–" if row["target"] is None else f"{row['target']:g}")
    console.print(table)
    if not quick:
        parts = ", ".join(f"{name} {value:.0f} s" for name, value in rows[-1]["parts"].items())
        console.print(f"the job: {parts}; peak {rows[-1]['peak_mb']:.0f} MB of {JOB_MB:.0f}")
    return rows


def beside_others(repeats: int) -> list[dict[str, Any]]:
    """Two rows: seconds of the default job, a list and its median, alone and beside NEIGHBOURS busy processes."""
    from rich.table import Table

    from lab.training.hardware import cpu_name

    seconds: dict[int, list[float]] = {0: [], NEIGHBOURS: []}
    for repeat in range(repeats):
        for neighbours, taken in seconds.items():
            console.print(f"repeat {repeat + 1} of {repeats}: beside {neighbours} busy processes")
            with busy_processes(neighbours):
                taken.append(seconds_of(list(JOB), works=True)[0])
    alone = statistics.median(seconds[0])
    spin = {name: os.environ.get(name) for name in SHORT_WAITS}
    table = Table(title=f"{' '.join(JOB)}, {cpu_name()}, {len(os.sched_getaffinity(0))} cores, medians of {repeats}")
    for column in ("busy neighbours", "seconds", "times alone", "at most"):
        table.add_column(column, justify="right")
    rows = []
    for neighbours, taken in seconds.items():
        median, limit = statistics.median(taken), SLOWER if neighbours else None
        rows.append({"neighbours": neighbours, "seconds": median, "each": taken, "ratio": median / alone, **spin})
        table.add_row(str(neighbours), f"{median:.1f}", f"{median / alone:.2f}", "–" if limit is None else f"{limit:g}")
    console.print(table)
    return rows


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Within the context as many processes multiply matrices all the time."""
    others = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds_of(arguments: list[str], works: bool) -> tuple[float, dict[str, Any]]:
    """Seconds of one `python -m lab.train`, and the record it left; raises where it ends other than it should."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        line = [sys.executable, "-m", "lab.train", *arguments, f"hydra.run.dir={folder}/run"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if (done.returncode == 0) != works:
            raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
        record = Path(folder, "run", "result.json")
        return seconds, json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
