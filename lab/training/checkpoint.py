"""Checkpoint files of a run: written atomically, one kept behind the last, read with a fallback."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lab import heartbeat
from lab.errors import UsageError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
log = logging.getLogger(__name__)


def folder(run_dir: Path) -> Path:
    """Where a run's checkpoints live."""
    return run_dir / "checkpoints"


def exists(run_dir: Path) -> bool:
    """True where a run goes on from a checkpoint, readable or not."""
    return any((folder(run_dir) / name).exists() for name in (LAST, PREVIOUS))


@heartbeat.long()
def save(run_dir: Path, name: str, write: Callable[[Path], None], main: bool) -> Path:
    """Write a checkpoint beside its name and move it there; `last` first becomes `previous`.

    Every process calls it, since `write` may hold a barrier; only the main one has a file to move.

    Raises UsageError naming the path where the disk refuses; earlier checkpoints stay as they were.
    """
    path = folder(run_dir) / name
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if not main:
            return path
        if name == LAST and path.exists():
            path.replace(path.parent / PREVIOUS)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error) and "write" not in str(error):
            raise
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            log.warning("could not remove %s", temporary)
        raise UsageError(
            f"could not write {path}: {error}; the earlier checkpoint is intact. Free space, or resume elsewhere."
        ) from error
    return path


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, in plain types and tensors; raises what torch raises on a broken file."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "structure" not in content:
        raise ValueError(f"{path} is no checkpoint of this lab")
    return content


def newest(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint that can be read, or None where a run has none yet; says so when it falls back.

    Raises UsageError where there are checkpoints and none can be read.
    """
    broken = []
    for name in (LAST, PREVIOUS):
        path = folder(run_dir) / name
        if not path.exists():
            continue
        try:
            content = load(path)
        except (RuntimeError, EOFError, ValueError, OSError, KeyError, ImportError) as error:
            broken.append(f"{path.name} ({str(error).splitlines()[0][:120]})")
            continue
        if broken:
            message = (
                f"{', '.join(broken)} cannot be read; falling back to {name} at step {content['progress']['step']}"
            )
            log.warning(message)
            print(message)
        return path, content
    if broken:
        raise UsageError(f"no checkpoint in {folder(run_dir)} can be read: {', '.join(broken)}; start the run anew.")
    return None
