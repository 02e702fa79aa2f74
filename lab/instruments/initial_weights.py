"""What layers were before training, W₀: on disk, or frozen under their pairs."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lab.adapter.delta import pristine_weight
from lab.adapter.layer import LowRankLinear
from lab.errors import UsageError
from lab.files import write_atomically
from lab.model import digest_of
from lab.spectral.noise import left_directions
from lab.training import checkpoint

log = logging.getLogger(__name__)

WEIGHTS, DIRECTIONS = "initial.safetensors", "initial_directions"


class OnDisk(Mapping[str, Tensor]):
    """Weights in a file of the run's checkpoints, each read when it is asked for."""

    def __init__(self, run_dir: Path) -> None:
        self.path = checkpoint.folder(run_dir) / WEIGHTS
        self._checked: set[str] = set()  # by this process

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Put these in the file's place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, {name: weight.cpu().contiguous() for name, weight in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        """A weight as it was written; raises UsageError where the file holds another."""
        with self._open() as file:
            tensor: Tensor = file.get_tensor(name)
            if name not in self._checked and not _is_whole(name, tensor, file.metadata()):
                raise UsageError(
                    f"{self.path} does not hold what was written to it for {name}, against which changes are measured; "
                    f"restore it, or start the run anew."
                )
        self._checked.add(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        with self._open() as file:
            return name in file.keys()  # noqa: SIM118 (the handle is no mapping)

    def __iter__(self) -> Iterator[str]:
        with self._open() as file:
            yield from file.keys()

    def __len__(self) -> int:
        with self._open() as file:
            return len(file.keys())

    def _open(self) -> Any:
        if not self.path.is_file():
            raise UsageError(f"{self.path} is gone, against which changes are measured; restore it, or start anew.")
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{self.path} cannot be read ({error}), against which changes are measured; restore it, or start anew."
            ) from error


class Pristine(Mapping[str, Tensor]):
    """The frozen base weights under the pairs, as they were before training."""

    def __init__(self, layers: Mapping[str, LowRankLinear]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Tensor:
        return pristine_weight(self._layers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Directions(Mapping[str, Tensor]):
    """The left singular vectors of weights, by `left_directions` on a device whenever they are asked for."""

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self._weights, self._device = weights, device

    def __getitem__(self, name: str) -> Tensor:
        return left_directions(self._weights[name].to(self._device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class KeptDirections(Directions):
    """The same, computed once and kept in a folder beside the weights, by the process that asks first."""

    def __init__(self, weights: OnDisk, device: torch.device) -> None:
        super().__init__(weights, device)
        self._folder = weights.path.parent / DIRECTIONS

    def forget(self) -> None:
        """Remove what belongs to weights that are replaced."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def __getitem__(self, name: str) -> Tensor:
        path = self._folder / f"{name}.safetensors"
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    kept: Tensor = file.get_tensor("U")
                    if _is_whole("U", kept, file.metadata()):
                        return kept
            except (SafetensorError, OSError) as error:
                log.warning("%s: %s", path, error)
            log.warning("%s is damaged and is computed again", path)
        found = super().__getitem__(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(path, {"U": found.cpu()})
        return found


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file with the digest of each tensor among its notes."""
    notes = {name: digest_of(name, tensor).hex() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, notes))


def _is_whole(name: str, tensor: Tensor, notes: Mapping[str, str] | None) -> bool:
    """True where a tensor has the digest that was noted; files of before 2026-11-27 note none, and are believed."""
    return not notes or name not in notes or notes[name] == digest_of(name, tensor).hex()
