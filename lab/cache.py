"""Cache of things that are dear to make or to bring, kept between runs. Standard library only.

A cache costs no run: where its folder cannot be made, read or written, the run goes on without, and says so once.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.files import write_atomically

log = logging.getLogger(__name__)
KINDS = {  # folders of the cache, and what they hold
    "bases": "models that were fetched, or converted from GGUF files",
    "stdlib": "texts of Python's own library, split into sides",
    "svd": "decompositions of weights: the least recently used go beyond 8 GiB",
    "base_loss": "losses of bases",
    "planted": "data that a planted change wrote",
    "trusted": "which runs and studies were started here, and so may run their own code",
}
KEPT = ("trusted",)  # what nothing makes again
_told: list[str] = []  # what this process has said of its cache


def root() -> Path:
    """The cache's folder, there or not: `$LAB_CACHE`, else `~/.cache/lowrank-lab`; RuntimeError without a home."""
    return Path(os.environ.get("LAB_CACHE") or "~/.cache/lowrank-lab").expanduser().absolute()


def cache_dir(kind: str) -> Path | None:
    """The folder for one of KINDS, made if missing; None where there is none and none can be made."""
    try:
        path = root() / kind
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows this user's home
        _tell(error)
        return None
    return path


def keep(path: Path | None, write: Callable[[Path], object]) -> bool:
    """Write a file of the cache atomically; False where it could not be kept, as with `path` None."""
    if path is None:
        return False
    try:
        write_atomically(path, write)
    except OSError as error:
        _tell(error)
        return False
    return True


def keep_json(path: Path | None, value: Any) -> bool:
    """Keep a value as JSON behind its checksum; False where it could not be kept."""
    text = json.dumps(value)
    return keep(path, lambda temporary: temporary.write_text(f"{_checksum(text)} {text}", encoding="utf-8"))


def read_json(path: Path | None) -> Any:
    """The value that `keep_json` kept; None where there is nothing or it is damaged, which is logged."""
    if path is None:
        return None
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition(" ")
        if checksum != _checksum(text):
            raise ValueError("it does not match its checksum")
        return json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is not readable (%s) and is computed again", path, error)
        return None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within the context no other process of this machine makes what lies at `path`; one that does is waited for."""
    with path.with_name(f".{path.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Held:
    """What the cache has of one kind."""

    kind: str
    files: int
    bytes: int


def held() -> list[Held]:
    """What the cache has of each kind, those it has nothing of left out."""
    sizes = {kind: [path.stat().st_size for path in (root() / kind).rglob("*") if path.is_file()] for kind in KINDS}
    return [Held(kind, len(each), sum(each)) for kind, each in sizes.items() if each]


def clear(kinds: tuple[str, ...]) -> None:
    """Remove all that the cache has of some kinds; raises OSError where the disk refuses."""
    for kind in kinds:
        if (root() / kind).is_dir():
            shutil.rmtree(root() / kind)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tell(error: Exception) -> None:
    sentence = f"Nothing is kept for the next run ({error}); set LAB_CACHE to a folder that can be written."
    log.info(sentence)
    if not _told:
        print(sentence, file=sys.stderr, flush=True)
    _told.append(sentence)
