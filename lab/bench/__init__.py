"""Benchmarks, a suite per file: speed, memory and accuracy beside what others would have used."""

import os
import sys
from collections.abc import Sequence
from typing import Any

BenchRow = dict[str, Any]  # one of bench_<suite>.json
SPECTRA = ("decaying", "gaussian")  # of the layers that the suite `init` measures on
MODELS = ("base", "135m")  # grounds of the suite `train`
BUDGET = 420  # seconds of the suite `gpu`


def with_one_gpu() -> dict[str, str]:
    """The environment of a process that shall see the first GPU alone: transformers' Trainer would split over all."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}


def lacks(suite: str, modules: Sequence[str]) -> str:
    """The sentence for a Python that has not what a suite imports."""
    return (
        f"the suite {suite} needs {', '.join(modules)}, which {sys.executable} does not have: install lowrank-lab for "
        f"it, or carry wheels as docs/performance.md says under On a GPU."
    )
