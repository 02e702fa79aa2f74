"""Benchmarks, a suite per file: speed, memory and accuracy beside what others would have used."""

from typing import Any

BenchRow = dict[str, Any]  # one of bench_<suite>.json
SPECTRA = ("decaying", "gaussian")  # of the layers that the suite `init` measures on
MODELS = ("base", "135m")  # grounds of the suite `train`
BUDGET = 420  # seconds of the suite `gpu`
