"""Integrity of a run's files: length and hash at a moment, and whether what grew since still begins that way."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import UsageError, refused

GROWING = ("metrics.csv", "decisions.jsonl", "ledger/rows.jsonl", "adalora.csv", "switches.jsonl", "retention.csv")
WRITTEN_ONCE = ("init.csv", "first_step.csv", "learned.csv")
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}|(last|best)\.tmp")  # of a write that a kill cut short
WEIGHTS = ("adapter/*.safetensors", "model/*.safetensors")
Prefix = dict[str, Any]  # bytes, sha256


def prefix(path: Path) -> Prefix:
    """Length and sha256 of a file as it is now."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def prefixes(run_dir: Path, names: Iterable[str]) -> dict[str, Prefix]:
    """Those of a run's files that are there, by name."""
    return {name: prefix(run_dir / name) for name in names if (run_dir / name).is_file()}


def closed(run_dir: Path) -> dict[str, Prefix]:
    """Files of an ended run that nothing writes to again: its text files and the weights it exported."""
    weights = (str(path.relative_to(run_dir)) for pattern in WEIGHTS for path in sorted(run_dir.glob(pattern)))
    return prefixes(run_dir, (*GROWING, *WRITTEN_ONCE, *weights))


def damage(path: Path, recorded: Prefix, *, whole: bool = False) -> str | None:
    """Damage of a file against what was recorded of it, as a sentence begins; None where it begins (`whole`: is) so.

    Raises UsageError where it may not be read.
    """
    try:
        return _damage(path, recorded, whole)
    except PermissionError as error:
        raise refused(path, error) from None


def _damage(path: Path, recorded: Prefix, whole: bool) -> str | None:
    if not path.is_file():
        return f"{path} is gone"
    size = path.stat().st_size
    if size < recorded["bytes"] or (whole and size != recorded["bytes"]):
        return f"{path} has {size:,} bytes where {recorded['bytes']:,} were recorded"
    digest, left = hashlib.sha256(), recorded["bytes"]
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
    if digest.hexdigest() != recorded["sha256"]:
        return f"{path} does not hold what was written to it in its first {recorded['bytes']:,} bytes"
    return None


def cut_back(run_dir: Path, recorded: Mapping[str, Prefix]) -> None:
    """Cut a run's growing files back to what they were at a checkpoint, and remove those that were not there yet.

    Raises UsageError where one has lost or changed what was recorded of it; nothing is cut then.
    """
    for name in GROWING:
        fault = damage(run_dir / name, recorded[name]) if name in recorded else None
        if fault is not None:
            raise UsageError(
                f"{fault}; a run goes on with whole files only: put a copy of it back, or start the run anew."
            )
    for name in GROWING:
        path = run_dir / name
        if name not in recorded:
            path.unlink(missing_ok=True)
        elif path.stat().st_size > recorded[name]["bytes"]:
            os.truncate(path, recorded[name]["bytes"])


def sweep(run_dir: Path) -> None:
    """Remove what writes left behind that a kill cut short; only for who holds the run's lock."""
    for place in (run_dir, run_dir / "checkpoints", run_dir / "adapter", run_dir / "ledger"):
        if place.is_dir():
            for path in place.iterdir():
                if LEFTOVER.fullmatch(path.name) and path.is_file():
                    path.unlink()
