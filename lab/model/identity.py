"""Identity of a model's weights as its files store them, whatever dtype a run holds them in."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from lab.model import combined, digest_of, hub
from lab.model.stored import weight_files

if TYPE_CHECKING:
    from torch import Tensor


def stored_sha256(name_or_path: str, revision: str | None) -> str:
    """sha256 over name, shape, dtype and raw bytes of each tensor in a model's files, by name.

    It is `weights_sha256` of the model held in that dtype, where its parameters are named as in the files. Shards and
    file formats make no difference. Raises UsageError where a file cannot be read.
    """
    digests: dict[str, bytes] = {}
    with hub.explain_errors(name_or_path, revision):
        for file in weight_files(name_or_path, revision):
            digests |= dict(_safetensors(file) if file.suffix == ".safetensors" else _pickled(file))
    return combined(digests)


def _safetensors(file: Path) -> Iterator[tuple[str, bytes]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors, ThreadPoolExecutor(max_workers=4) as pool:
        names = list(tensors.keys())  # hashlib releases the interpreter lock, and a tensor is freed behind its digest
        yield from zip(names, pool.map(lambda name: digest_of(name, tensors.get_tensor(name)), names), strict=True)


def _pickled(file: Path) -> Iterator[tuple[str, bytes]]:
    import torch

    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    for name, tensor in state.items():
        yield name, digest_of(name, tensor)
