"""What layers were before training, W₀: on disk, or frozen under their pairs."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lab.adapter.delta import pristine_weight
from lab.adapter.layer import LowRankLinear
from lab.cache import write_atomically
from lab.errors import UsageError
from lab.spectral.noise import left_directions
from lab.training import checkpoint

WEIGHTS, DIRECTIONS = "initial.safetensors", "initial_directions"


class OnDisk(Mapping[str, Tensor]):
    """Weights in a file of the run's checkpoints, each read when it is asked for."""

    def __init__(self, run_dir: Path) -> None:
        self.path = checkpoint.folder(run_dir) / WEIGHTS

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Put these in the file's place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: weight.cpu().contiguous() for name, weight in weights.items()}
        write_atomically(self.path, lambda temporary: save_file(tensors, temporary))

    def __getitem__(self, name: str) -> Tensor:
        with self._open() as file:
            return file.get_tensor(name)

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
        return safe_open(self.path, framework="pt")


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
            return load_file(path)["U"]
        found = super().__getitem__(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: save_file({"U": found.cpu()}, temporary))
        return found
