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

from lab.errors import Refused, UsageError, refused
from lab.files import write_atomically

SCHEMA = 1
STATUSES = ("running", "completed", "diverged", "failed", "interrupted", "stopped")
MOST_DIGITS = 40  # of a whole number: no count of parameters, tokens or bytes has as many
RESULT, LOCK = "result.json", ".lock"
LOCK_SECONDS = 1.0


METRICS = (  # what every run measures, as far as its data and method allow, in nats per token where it is a loss
    *("train_loss", "val_loss", "val_perplexity", "val_bpb", "best_val_loss", "best_val_bpb", "best_step"),
    *("test_loss", "test_accuracy", "test_accuracy_low", "test_accuracy_high", "retention_loss", "forgetting"),
    "equal_loss_forgetting",
    *("base_val_loss", "base_test_loss", "base_retention_loss"),
    *("base_test_accuracy", "base_test_accuracy_low", "base_test_accuracy_high"),
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
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # by lab.evaluate: task -> measures, and how
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

    @property
    def override_values(self) -> dict[str, str]:
        """Setting -> text of the overrides: all that a run which failed early has recorded of itself."""
        return dict(override.lstrip("+").partition("=")[::2] for override in self.overrides)


def strict(value: Any) -> Any:
    """The same value in strict JSON types; NaN and infinities become None: JSON has none, and 0 would be a lie."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def setting(record: RunRecord, key: str) -> Any:
    """A setting by its dotted key: as resolved, else as overridden where a run failed before; None for neither."""
    value: Any = record.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return record.override_values.get(key) if value is None else value


def write(run_dir: Path, record: RunRecord) -> None:
    """Replace result.json atomically; raises UsageError naming the path where the disk refuses."""
    write_json(run_dir / RESULT, asdict(record), "hydra.run.dir")


def write_json(path: Path, content: dict[str, Any], place: str) -> None:
    """Replace a record's file atomically, in strict JSON.

    Raises UsageError where the disk refuses, naming the path and `place`, the setting that chooses another disk.
    """
    text = json.dumps(strict(content), indent=2, allow_nan=False) + "\n"
    try:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"could not write {path}: {error.strerror}; free space or choose {place} elsewhere."
        ) from error


def parse(text: str) -> Any:
    """Value of a JSON text of ours; raises ValueError where JSON's readers disagree: NaN, huge numbers, a key twice."""
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
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return dict(pairs)


def check_own(path: Path) -> None:
    """Raise UsageError where a file of a record is a link, or no file that could end."""
    if path.is_symlink():
        raise UsageError(
            f"{path} is a link to {path.readlink()}, and a record is read from its own folder; copy it in."
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file; restore it.")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a record's file; raises FileNotFoundError or NotADirectoryError for none.

    Raises UsageError for a file that may not be read, no JSON of ours or another schema.
    """
    try:
        check_own(path)
        raw = parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise refused(path, error) from None
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error}).") from None
    schema = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
    if not isinstance(raw, dict) or schema != SCHEMA:
        raise UsageError(f"{path} has schema {schema!r}; this version reads schema {SCHEMA}.")
    return raw


def read(run_dir: Path) -> RunRecord:
    """The record of a run; raises UsageError where there is none, it is not JSON, or its schema is another."""
    path = Path(run_dir) / RESULT
    try:
        raw = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run_dir} is no run directory: it holds no {RESULT}.") from None
    if raw.get("status") not in STATUSES:
        raise UsageError(f"{path} has status {raw.get('status')!r}; known are {', '.join(STATUSES)}.")
    if unknown := sorted(set(raw) - {item.name for item in fields(RunRecord)}):
        raise UsageError(f"{path} has unknown fields {', '.join(unknown)}; was it edited by hand?")
    return RunRecord(**raw)


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Mark a run as live for as long as the context (or its process) lasts; raises UsageError if it already is.

    Tried for a second: who only asks whether the run is live holds a shared lock for a moment. Who may lock it after
    this user is the umask's to say; raises UsageError where this one may not.
    """
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise refused(run_dir / LOCK, error) from None
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
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError(f"{path} is no file, so whether the run is live is unknown; remove it.")
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}), so whether the run is live is unknown.") from None
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
