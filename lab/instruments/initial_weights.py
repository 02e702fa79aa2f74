"""Initial weights W₀ of layers that train in full, and their directions: on disk, each read when it is asked for."""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lab.errors import UsageError
from lab.files import write_atomically
from lab.model import digest_of
from lab.spectral.noise import left_directions
from lab.training import checkpoint

log = logging.getLogger(__name__)

WEIGHTS, DIRECTIONS = "initial.safetensors", "initial_directions"


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class OnDisk:
    """Weights in a file of the run's checkpoints, and the left singular vectors of each in a folder beside it."""

    def __init__(self, run_dir: Path) -> None:
        self.path = checkpoint.folder(run_dir) / WEIGHTS
        self._checked: set[str] = set()  # by this process

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Put these in the file's place; directions of others are forgotten."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, {name: weight.cpu().contiguous() for name, weight in weights.items()})
        shutil.rmtree(self.path.parent / DIRECTIONS, ignore_errors=True)

    def weight(self, name: str) -> Tensor:
        """A weight as it was written; raises UsageError where the file is gone or holds another."""
        if not self.path.is_file():
            raise UsageError(f"{self.path} is gone, against which changes are measured; restore it, or start anew.")
        try:
            opened: Any = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{self.path} cannot be read ({error}), against which changes are measured; restore it, or start anew."
            ) from error
        with opened as file:
            tensor: Tensor = file.get_tensor(name)
            if name not in self._checked and not _is_whole(name, tensor, file.metadata()):
                raise UsageError(
                    f"{self.path} does not hold what was written to it for {name}, against which changes are measured; "
                    f"restore it, or start the run anew."
                )
        self._checked.add(name)
        return tensor

    def directions(self, name: str, device: torch.device) -> Tensor:
        """A weight's left singular vectors, by `left_directions`: computed by the process that asks first, and kept."""
        path = self.path.parent / DIRECTIONS / f"{name}.safetensors"
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    kept: Tensor = file.get_tensor("U")
                    if _is_whole("U", kept, file.metadata()):
                        return kept
            except (SafetensorError, OSError) as error:
                log.warning("%s: %s", path, error)
            log.warning("%s is damaged and is computed again", path)
        computed = left_directions(self.weight(name).to(device))
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {"U": computed.cpu()})
        return computed


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file with the digest of each tensor among its notes."""
    notes = {name: digest_of(name, tensor).hex() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, notes))


def _is_whole(name: str, tensor: Tensor, notes: Mapping[str, str] | None) -> bool:
    """True where a tensor has the digest that was noted; files of before 2026-11-27 note none, and are believed."""
    return not notes or name not in notes or notes[name] == digest_of(name, tensor).hex()
