"""A lab for low-rank training: LoRA initialisation, rank, and spectra, verified run by run."""

import os
from typing import Any

__version__ = "0.1.0"

# How long a thread of a parallel region spins before it sleeps, for GNU's OpenMP and for Intel's and LLVM's. By default
# it spins for milliseconds, which beside other work keeps a core from the thread that all are waiting for; this count
# costs nothing on a quiet machine (docs/performance.md). Read when torch loads its runtime, so it stands here, ahead of
# every import; processes that are started inherit it.
SHORT_WAITS = {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "0"}
WAIT_SETTINGS = {*SHORT_WAITS, "OMP_WAIT_POLICY", "KMP_LIBRARY"}
if not WAIT_SETTINGS & os.environ.keys():  # else the user has decided
    os.environ |= SHORT_WAITS


def __getattr__(name: str) -> Any:
    """`lab.load_run(DIR)` and `lab.load_study(DIR)`, imported when first asked for."""
    if name in ("load_run", "load_study"):
        from lab import report

        return getattr(report, name)
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
