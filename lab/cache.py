"""Cache of derived things that are dear to make, kept between runs. Standard library only.

A cache costs no run: where its folder cannot be made, read or written, the run goes on without, and says so once.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.files import write_atomically

log = logging.getLogger(__name__)
_told: list[str] = []  # what this process has said of its cache


def cache_dir(kind: str) -> Path | None:
    """The folder for one kind of derived data, made if missing: in `$LAB_CACHE`, else `~/.cache/lowrank-lab`.

    None where there is none and none can be made.
    """
    try:
        path = Path(os.environ.get("LAB_CACHE") or "~/.cache/lowrank-lab").expanduser().absolute() / kind
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
    return keep(path, lambda temporary: temporary.write_text(f"{_checksum(text)} {text}"))


def read_json(path: Path | None) -> Any:
    """The value that `keep_json` kept; None where there is nothing or it is damaged, which is logged."""
    if path is None:
        return None
    try:
        checksum, _, text = path.read_text().partition(" ")
        if checksum != _checksum(text):
            raise ValueError("it does not match its checksum")
        return json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is not readable (%s) and is computed again", path, error)
        return None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tell(error: Exception) -> None:
    sentence = f"Nothing is kept for the next run ({error}); set LAB_CACHE to a folder that can be written."
    log.info(sentence)
    if not _told:
        print(sentence, file=sys.stderr, flush=True)
    _told.append(sentence)
