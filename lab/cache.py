"""Where derived things that are dear to make are kept between runs. Standard library only."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir(kind: str) -> Path:
    """The folder for one kind of derived data, made if missing: `$LAB_CACHE` or `~/.cache/lowrank-lab`."""
    root = Path(os.environ.get("LAB_CACHE") or Path.home() / ".cache" / "lowrank-lab")
    path = root / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file through a temporary neighbour, so that a reader or a kill never sees half of it."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
