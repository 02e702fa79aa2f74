"""How long a thread spins before it sleeps: what each count costs on a quiet machine, and beside busy processes.

`python -m lab.bench waits`. Every number is of a process of its own, with GOMP_SPINCOUNT set; counts take turns.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab import SHORT_WAITS
from lab.bench import BenchRow
from lab.training.progress import console

COUNTS = ("1000", "10000", "30000", "300000")  # 300000 is libgomp's own where nothing is set
STEPS, WARM_UP = 15, 3  # of pre-training


def run(quick: bool) -> list[BenchRow]:
    """A row per load, work and count: each seconds, their median, and its ratio to the fastest count's."""
    from lab.bench.job import NEIGHBOURS, busy_processes

    repeats = 1 if quick else 5
    works: dict[str, Callable[[], float]] = {"a step of pretrain": _pretrain, "1000 tokens of train": _train}
    if not quick:
        works["the default job"] = _job
    taken: dict[tuple[int, str, str], list[float]] = {}
    for neighbours in (0, NEIGHBOURS):
        for name, work in works.items():
            for repeat in range(repeats):
                console.print(f"{name}, beside {neighbours} busy processes, repeat {repeat + 1} of {repeats}")
                for count in COUNTS if repeat % 2 == 0 else reversed(COUNTS):
                    with _spinning(count), busy_processes(neighbours):
                        taken.setdefault((neighbours, name, count), []).append(work())
            _show(neighbours, name, [taken[neighbours, name, count] for count in COUNTS])
    rows = []
    for (neighbours, name, count), each in taken.items():
        fastest = min(statistics.median(taken[neighbours, name, other]) for other in COUNTS)
        median = statistics.median(each)
        row = {"neighbours": neighbours, "work": name, "count": int(count), "seconds": median, "each": each}
        rows.append({**row, "ratio": median / fastest})
    return rows


@contextmanager
def _spinning(count: str) -> Iterator[None]:
    """Processes started within spin that long."""
    before = os.environ.get("GOMP_SPINCOUNT")
    os.environ |= {**SHORT_WAITS, "GOMP_SPINCOUNT": count}
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
        if before is not None:
            os.environ["GOMP_SPINCOUNT"] = before


def _job() -> float:
    from lab.bench.job import JOB, seconds_of

    return seconds_of(list(JOB), works=True)[0]


def _train() -> float:
    from lab.bench.ground import GROUNDS
    from lab.bench.train import measure

    return 1e3 / float(measure("lab", 24, "base", GROUNDS["base"].batch)["tokens_per_second"])


def _pretrain() -> float:
    line = [sys.executable, "-m", "lab.bench.waits"]
    return float(json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))


def step_of_pretraining() -> float:
    """Seconds of a step of NanoChat at depth 4 over 8192 words, the median of STEPS."""
    import torch

    from lab.bench import pretrain
    from lab.bench.device import Stopwatch
    from lab.config import instantiate
    from lab.run.setup import resolve_hardware

    settings = pretrain.settings_of(8192)
    hardware = resolve_hardware(settings)
    (net,) = pretrain.on_device(instantiate.make(settings.model), 1, hardware.device)
    take, watch = pretrain.lab(net, settings, hardware), Stopwatch(hardware.device)
    generator, seconds = torch.Generator().manual_seed(0), []
    for _ in range(WARM_UP + STEPS):
        ids = torch.randint(8192, (1, pretrain.TOKENS), generator=generator).to(hardware.device)
        watch.start()
        take(ids)
        seconds.append(watch.stop())
    return statistics.median(seconds[WARM_UP:])


def _show(neighbours: int, name: str, each: list[list[float]]) -> None:
    medians = [statistics.median(values) for values in each]
    parts = [
        f"{count}: {median:.4g} s ({median / min(medians):.2f}x)" for count, median in zip(COUNTS, medians, strict=True)
    ]
    console.print(f"{name}, {neighbours} busy neighbours: {', '.join(parts)}")


if __name__ == "__main__":
    print(json.dumps(step_of_pretraining()))
