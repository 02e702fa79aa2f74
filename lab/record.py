"""What a run did, on disk: result.json, its lock, and the readers. Standard library only."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lab.cache import write_atomically
from lab.errors import UsageError

SCHEMA = 1
STATUSES = ("running", "completed", "diverged", "failed", "interrupted", "stopped")
RESULT, LOCK = "result.json", ".lock"


@dataclass
class RunRecord:
    """One run: what was asked, what was read back, what was measured. A value nobody measured is None, never 0."""

    schema: int = SCHEMA
    status: str = "running"
    study: str | None = None
    stage: str | None = None  # tune | halve | verdict
    rung: int | None = None
    arm: str | None = None
    choices: dict[str, str] = field(default_factory=dict)  # group -> option chosen
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    data_seed: int | None = None
    model: dict[str, Any] = field(default_factory=dict)  # name_or_path, revision, weights_sha256, dtype, quantization
    ranks: dict[str, int] = field(default_factory=dict)  # read back from the live model
    scalings: dict[str, float] = field(default_factory=dict)  # read back from the live model
    trainable_params: int | None = None
    total_params: int | None = None
    budget: dict[str, int] = field(default_factory=dict)  # asked, used: Σ rank · (out + in)
    init: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    steps: int | None = None
    tokens: int | None = None  # labelled tokens trained on
    seconds: dict[str, float] = field(default_factory=dict)  # total, init, train, eval, analysis
    peak_memory_bytes: int | None = None
    switches: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None  # type, message, and where it happened


def strict(value: Any) -> Any:
    """The same value in strict JSON types: non-finite floats become None, since JSON has no NaN and 0 would be a lie."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def write(run_dir: Path, record: RunRecord) -> None:
    """Replace result.json atomically; raises UsageError naming the path where the disk refuses."""
    text = json.dumps(strict(asdict(record)), indent=2, allow_nan=False) + "\n"
    path = run_dir / RESULT
    try:
        write_atomically(path, lambda temporary: temporary.write_text(text))
    except OSError as error:
        raise UsageError(
            f"could not write {path}: {error.strerror}; free space or choose hydra.run.dir elsewhere."
        ) from error


def read(run_dir: Path) -> RunRecord:
    """The record of a run; raises UsageError where there is none, it is not JSON, or its schema is another."""
    path = Path(run_dir) / RESULT
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{run_dir} is no run directory: it holds no {RESULT}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise UsageError(f"{path} has schema {found!r}; this version reads schema {SCHEMA}.")
    if raw.get("status") not in STATUSES:
        raise UsageError(f"{path} has status {raw.get('status')!r}; known are {', '.join(STATUSES)}.")
    known = {item.name for item in fields(RunRecord)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise UsageError(f"{path} has unknown fields {', '.join(unknown)}; was it edited by hand?")
    return RunRecord(**raw)


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Mark a run as live for as long as the context (or its process) lasts; raises UsageError if it already is."""
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{run_dir} is still live: another process is running it.") from None
        yield
    finally:
        os.close(descriptor)


def is_live(run_dir: Path) -> bool:
    """True while some process holds the run's lock."""
    path = run_dir / LOCK
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def status_of(run_dir: Path) -> str:
    """The status a reader should believe: `running` without a lock means `interrupted`."""
    status = read(run_dir).status
    return "interrupted" if status == "running" and not is_live(run_dir) else status
