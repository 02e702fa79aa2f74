"""Versions, device and commit: what a number needs beside it."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lab import __version__
from lab.training.hardware import Resolved


def environment(resolved: Resolved) -> dict[str, Any]:
    """The `environment` field of a RunRecord."""
    versions = {}
    for name in ("lightning", "transformers", "peft", "hydra-core", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "lab": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, which the package's own version may lack
        **versions,
        "accelerator": resolved.accelerator,
        "device": resolved.device_name,
        "devices": resolved.devices,
        "precision": resolved.precision,
        "threads": resolved.threads,
        "commit": commit or None,
    }
