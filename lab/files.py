"""Files that are whole or not there: written beside their place and moved into it. Standard library only."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file through a temporary neighbour, so that a reader or a kill never sees half of it.

    Who may read it is the umask's to say, also where `write` makes files of its owner's alone, as safetensors does.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`; it takes that place, which must be free or an empty folder, when all is written.

    Where anything is raised within, nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    beside.mkdir()
    try:
        yield beside
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def share_weights(folder: Path) -> None:
    """Let whoever may read a saved model's config.json read the weights too; safetensors keeps them for their owner."""
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)
