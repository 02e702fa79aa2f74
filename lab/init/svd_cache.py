"""Decompositions of weights kept between runs: a sweep decomposes each weight once.

A file is a pure function of the weight, the algorithm, the width and float32: the sketch's generator is seeded from
the weight's hash, and a width is shared by all ranks up to it, so a cached and an uncached run are bitwise equal.
Files are written atomically, checked by their own hash when read, and the oldest go when they exceed MAX_BYTES.
"""

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from lab.cache import cache_dir, keep
from lab.spectral.decomposition import Algorithm, Decomposition, decompose, energy_of, exact_basis, triples

log = logging.getLogger(__name__)

MIN_WIDTH = 64  # every rank up to this takes its triples from one decomposition, so a rank sweep makes one
MAX_BYTES = 8 * 2**30  # a full basis of a 4096-wide layer is 64 MiB; beyond this the least recently used files go


def weight_hash(weight: Tensor) -> str:
    """sha256 over the shape and the float32 bytes of a weight (out, in)."""
    digest = hashlib.sha256(repr(tuple(weight.shape)).encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(matrix: Tensor) -> memoryview:
    """The float32 bytes of a tensor, without a copy where it is float32 and on the CPU already."""
    plain: Any = matrix.detach().to("cpu", torch.float32).contiguous().numpy()
    return memoryview(plain).cast("B")


def leading_triples(weight: Tensor, rank: int, algorithm: Algorithm) -> Decomposition:
    """The leading `rank` triples of a finite float32 weight (out, in), from the cache where it has them."""
    if algorithm == "exact":
        return triples_at(weight, torch.arange(rank))
    name = weight_hash(weight)
    width = min(max(MIN_WIDTH, 1 << (rank - 1).bit_length()), *weight.shape)
    path = _file(f"{name}-randomised-{width}-float32")
    stored = _load(path, weight.device)
    if stored is None:
        generator = Generator().manual_seed(int(name[:15], 16))
        made = decompose(weight, width, algorithm, generator)
        # laid out as a file's tensors are: a product's last digit depends on how its factors lie in memory
        made = replace(made, U=made.U.contiguous(), Vh=made.Vh.contiguous())
        tensors = {"U": made.U, "S": made.S, "Vh": made.Vh}
        _save(path, tensors, {"passes": str(made.passes), "exact": str(int(made.exact))})
        return made.first(rank)
    tensors, meta = stored
    exact = bool(int(meta["exact"]))
    energy = energy_of(weight)
    return Decomposition(**tensors, energy=energy, passes=int(meta["passes"]), exact=exact).first(rank)


def triples_at(weight: Tensor, indices: Tensor) -> Decomposition:
    """The exact triples at `indices` (0 is the greatest) of a finite float32 weight, its basis taken from the cache."""
    path = _file(f"{weight_hash(weight)}-basis-float32")
    stored = _load(path, weight.device)
    if stored is None:
        basis = exact_basis(weight)
        _save(path, {"basis": basis}, {})
    else:
        basis = stored[0]["basis"]
    return triples(weight, basis, indices)


def _file(name: str) -> Path | None:
    """The path that a decomposition is kept at; None where the folder cannot be made."""
    folder = cache_dir("svd")
    return folder and folder / f"{name}.safetensors"


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(_bytes(tensors[key]))
    return digest.hexdigest()


def _load(path: Path | None, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors and notes of a file; None where there is none, and where it is damaged, which is logged."""
    if path is None:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            meta: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:  # never made, or another job has just made room
        return None
    except (SafetensorError, OSError) as error:
        log.warning("the cached decomposition %s cannot be read (%s); computing it again.", path, error)
        return None
    if meta.get("checksum") != _checksum(tensors):
        log.warning("the cached decomposition %s does not match its checksum; computing it again.", path)
        return None
    with suppress(OSError):  # a cache that can only be read needs no order of use
        os.utime(path)  # marks it as recently used
    return {key: tensor.to(device) for key, tensor in tensors.items()}, meta


def _save(path: Path | None, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write a file and make room; a full or read-only disk costs the cache, not the run."""
    if path is None:
        return
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    notes = {**notes, "checksum": _checksum(plain)}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, notes)
        except SafetensorError as error:  # its word for what the disk refuses
            raise OSError(str(error)) from error

    if keep(path, write):
        try:
            _make_room(path.parent)
        except OSError as error:
            log.warning("could not make room among the decompositions in %s (%s)", path.parent, error)


def _make_room(folder: Path) -> None:
    """Remove the least recently used files beyond MAX_BYTES; another job may be doing the same."""
    files = []
    for path in folder.glob("*.safetensors"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        files.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in files) - MAX_BYTES
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
