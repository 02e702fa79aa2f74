"""A lab for low-rank training: LoRA initialisation, rank, and spectra, verified run by run."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`lab.load_run(DIR)` and `lab.load_study(DIR)`, imported when first asked for."""
    if name in ("load_run", "load_study"):
        from lab.report import study

        return getattr(study, name)
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
