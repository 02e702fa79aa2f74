"""Record of a run on disk: result.json and its lock. Standard library only."""

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lab.errors import UsageError
from lab.files import write_atomically

SCHEMA = 1
STATUSES = ("running", "completed", "diverged", "failed", "interrupted", "stopped")
MOST_DIGITS = 40  # of a whole number: no count of parameters, tokens or bytes has as many
RESULT, LOCK = "result.json", ".lock"
LOCK_SECONDS = 1.0


METRICS = (  # what every run measures, as far as its data and method allow, in nats per token where it is a loss
    *("train_loss", "val_loss", "val_perplexity", "val_bpb", "best_val_loss", "best_val_bpb", "best_step"),
    *("test_loss", "test_accuracy", "retention_loss", "forgetting"),
    *("base_val_loss", "base_test_loss", "base_retention_loss"),
)


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
    failed_measures: dict[str, str] = field(default_factory=dict)  # what was asked for besides, and why it is missing
    steps: int | None = None
    tokens: int | None = None  # real tokens trained on, and looked at before step 0; padding is none
    labelled_tokens: int | None = None  # those of them whose prediction was trained; None in records of before it
    seconds: dict[str, float] = field(default_factory=dict)  # total, init, train, eval, analysis
    peak_memory_bytes: int | None = None
    switches: int | None = None
    spectral: dict[str, Any] = field(default_factory=dict)  # of a run with ticks: before, after, cost
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # bytes and sha256 of what a closed run left
    error: dict[str, Any] | None = None  # type, message, and where it happened


def strict(value: Any) -> Any:
    """The same value in strict JSON types: non-finite floats become None: JSON has no NaN, and 0 would be a lie."""
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


def parse(text: str) -> Any:
    """The value of a JSON text of ours; raises ValueError for what none holds, and JSON's readers disagree about."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}, which strict JSON does not know")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def text_of(path: Path) -> str:
    """The text of a record's file, as `check_own` allows it."""
    check_own(path)
    return path.read_text()


def check_own(path: Path) -> None:
    """Raise UsageError where a file of a record is a link, or no file that could end."""
    if path.is_symlink():
        raise UsageError(
            f"{path} is a link to {path.readlink()}, and a record is read from its own folder; copy it in."
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file; restore it.")


def read(run_dir: Path) -> RunRecord:
    """The record of a run; raises UsageError where there is none, it is not JSON, or its schema is another."""
    path = Path(run_dir) / RESULT
    try:
        raw = parse(text_of(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run_dir} is no run directory: it holds no {RESULT}.") from None
    except UsageError:
        raise
    except ValueError as error:
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
    """Mark a run as live for as long as the context (or its process) lasts; raises UsageError if it already is.

    Tried for a second: who only asks whether the run is live holds a shared lock for a moment.
    """
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(f"{run_dir} is still live: another process is running it.") from None
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_live(run_dir: Path) -> bool:
    """True while some process holds the run's lock; asking takes no right to write, and others may ask meanwhile."""
    path = run_dir / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is no file, so whether the run is live is unknown; remove it.")
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}), so whether the run is live is unknown.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def status_of(run_dir: Path) -> str:
    """The status a reader should believe: `running` without a lock means `interrupted`."""
    status = read(run_dir).status
    return "interrupted" if status == "running" and not is_live(run_dir) else status
