"""Checkpoint files of a run: written atomically, one kept behind the last, checked when read, with a fallback."""

import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lab.errors import UsageError
from lab.process import heartbeat

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
Found = tuple[Path, dict[str, Any]]  # a checkpoint and what it holds
log = logging.getLogger(__name__)

# What reading a file raises that is damaged, of another kind, a folder, or not to be read by this user.
DAMAGED = (
    *(RuntimeError, EOFError, ValueError, OSError, KeyError, ImportError, AttributeError, IndexError),
    *(zipfile.BadZipFile, pickle.UnpicklingError, NotImplementedError),
)


def folder(run_dir: Path) -> Path:
    """Where a run's checkpoints live."""
    return run_dir / "checkpoints"


def exists(run_dir: Path) -> bool:
    """True where a run goes on from a checkpoint, readable or not."""
    return any((folder(run_dir) / name).exists() for name in (LAST, PREVIOUS))


class Checkpoint(CheckpointIO):
    """Lightning's way to a file: straight to its folder, where Lightning's own would pass through $TMPDIR."""

    def __init__(self, known: Found | None = None) -> None:
        self.known = known  # read and checked already

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file to the disk itself, so that a rename behind it never outlives its content."""
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint known to be there, or what `load` reads."""
        return self.known[1] if self.known is not None and self.known[0] == Path(path) else load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file."""
        Path(path).unlink()


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
    """A checkpoint's content, in plain types and tensors; raises one of DAMAGED on a file that is not what was written.

    torch writes a checksum for each tensor into the file and does not look at it again: a flipped bit would be trained
    on.
    """
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"{broken} in it does not match its checksum")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "structure" not in content:
        raise ValueError("it is no checkpoint of this lab")
    return content


def newest(run_dir: Path) -> Found | None:
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
        except DAMAGED as error:
            broken.append(f"{path.name} ({reason(error)})")
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


def reopen(content: dict[str, Any], accumulate: int) -> None:
    """Let a run go on behind the step of this checkpoint, in steps of `accumulate` micro-batches of this process.

    Lightning counts in micro-batches, of which a step has another number where memory or devices are others now: kept
    as they were, the counts would go on with another step's batches, in the middle of a step, or to an earlier end. And
    it keeps whether a batch was its last, and would end again with it.
    """
    done, loops = content["progress"]["step"] * accumulate, content["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    for counts in (
        batches["total"],
        batches["current"],
    ):  # saved in the hook of a batch that is not completed before its end
        counts.update(ready=done, started=done, processed=done, completed=done - 1)
    loops["state_dict"]["combined_loader"] = [{"position": done}]


def best(run_dir: Path) -> dict[str, Any]:
    """The checkpoint of the best validation loss; raises UsageError where it is gone or damaged."""
    path = folder(run_dir) / BEST
    try:
        return load(path)
    except DAMAGED as error:
        raise UsageError(
            f"{path} cannot be read ({reason(error)}), and select=best reports the weights in it and no others; "
            f"restore the file, or run again."
        ) from error


def reason(error: BaseException) -> str:
    """The first line of an error, short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
