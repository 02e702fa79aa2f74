"""Everything that is worth measuring on a GPU, in one prepared call.    python -m lab.bench gpu [--budget SECONDS]"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lab.bench import BUDGET, BenchRow, lacks
from lab.bench.gpu.part import Started
from lab.errors import UsageError
from lab.training.progress import console


@dataclass(frozen=True)
class Part:
    """A part, a file of this folder whose `rows` gives what it measured, each as soon as it is known."""

    name: str
    share: float  # of the budget, that it may take; what others leave over is theirs who come later
    needs_cuda: bool = False  # True: nothing of it can be tried on a CPU


PARTS = (  # the most valuable first: a budget that ends early costs the last
    Part("ceilings", 0.10),
    Part("checks", 0.30, needs_cuda=True),
    Part("resumed", 0.20),
    Part("large", 0.35),
    Part("pretraining", 0.25),
    Part("factors", 0.15),
    Part("packed", 0.25),
    Part("together", 0.15),
)

NEEDS = ("torch", "lightning", "transformers", "peft", "hydra", "omegaconf", "scipy", "safetensors", "psutil", "yaml")


def run(
    quick: bool,
    budget: int = BUDGET,
    tiny: bool = False,
    lines: Path | None = None,
    parts: Sequence[Part] = PARTS,
) -> list[BenchRow]:
    """A row per part: its status (done, skipped, failed, timed out), seconds, deadline, rows, and error.

    `lines` is a file that takes each as the part ends. Each part is a process of its own, started while the one before
    it runs and told to go when that has ended; at its deadline it is killed with all that it has started, and what it
    had measured by then is kept. `tiny` shrinks every shape.

    Raises UsageError where there is no GPU and not `tiny`, and where the parts would lack something to import.
    """
    if absent := [name for name in NEEDS if find_spec(name) is None]:
        raise UsageError(lacks("gpu", absent))
    import torch

    cuda = torch.cuda.is_available()
    if not (cuda or tiny):
        raise UsageError(
            f"the suite gpu needs a CUDA device, and torch {torch.__version__} sees none; add --tiny to try the script "
            f"on a CPU."
        )
    if lines is not None:
        lines.write_text("", encoding="utf-8")
    done: list[BenchRow] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        waiting = [part for part in parts if cuda or not part.needs_cuda]
        ahead = _start(waiting, tiny, folder)
        try:
            for part in parts:
                left = budget - (time.monotonic() - began)
                if part not in waiting:
                    row: BenchRow = {"part": part.name, "status": "skipped", "error": "skipped: no CUDA", "rows": []}
                else:
                    waiting.remove(part)
                    started, ahead = ahead, _start(waiting, tiny, folder)
                    assert started is not None
                    row = _row(part, started, min(part.share * budget, left), budget)
                done.append(row)
                if lines is not None:
                    with lines.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                console.print(f"{row['part']}: {row['status']}{_why(row)}", markup=False, highlight=False)
        finally:
            if ahead is not None:
                ahead.end()
    return done


def _start(waiting: Sequence[Part], tiny: bool, folder: str) -> Started | None:
    return Started(waiting[0].name, tiny, Path(folder, waiting[0].name)) if waiting else None


def _row(part: Part, started: Started, deadline: float, budget: int) -> BenchRow:
    if deadline < 1:
        started.end()
        return {"part": part.name, "status": "skipped", "error": f"skipped: {budget} s are spent", "rows": []}
    return {"part": part.name, **started.go(deadline)}


def _why(row: BenchRow) -> str:
    seconds = f" in {row['seconds']:.1f} s, {len(row['rows'])} rows" if "seconds" in row else ""
    return seconds + (f" ({row['error']})" if row.get("error") else "")
