"""Run directories as data: the record, the status a reader should believe, and the curves. Standard library only."""

import csv
import math
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lab import record
from lab.errors import UsageError
from lab.paths import at_home
from lab.record import RunRecord, run_files
from lab.record.forgetting import FILE as RETENTION
from lab.record.study import RATE

METRICS = "metrics.csv"
_TEXT = ("study", "stage", "arm")
_DICTS = (
    *("choices", "config", "model", "ranks", "metrics", "failed_measures"),
    *("seconds", "environment", "data", "files", "evaluations"),
)
_COUNTS = (
    *("seed", "data_seed", "rung", "trainable_params", "total_params"),
    *("steps", "tokens", "labelled_tokens", "peak_memory_bytes"),
)


@dataclass(frozen=True)
class Run:
    """One run directory: its record, and the status a reader should believe."""

    path: Path
    record: RunRecord
    status: str
    rate_key: str = RATE  # the setting that its study calls the learning rate

    @property
    def name(self) -> str:
        """The directory's own name, which every table uses."""
        return self.path.name

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate it was run at; of a run that failed early as its overrides have it."""
        rate = record.setting(self.record, self.rate_key)
        try:
            return None if rate is None else float(rate)
        except (TypeError, ValueError):
            return None

    @property
    def rank(self) -> int | None:
        """The one LoRA rank of every module, read back; None where modules differ or there is no adapter."""
        ranks = set(self.record.ranks.values())
        return ranks.pop() if len(ranks) == 1 else None

    @property
    def pair(self) -> tuple[int | None, int | None]:
        """Seed and data_seed, which two runs must share to be a pair."""
        seed, data_seed = self.record.seed, self.record.data_seed
        if seed is None:  # it failed before it recorded more than its overrides
            settings = self.record.override_values
            seed = int(settings["seed"]) if settings.get("seed", "").isdigit() else None
            data_seed = int(settings["data_seed"]) if settings.get("data_seed", "").isdigit() else seed
        return seed, data_seed

    @property
    def error(self) -> str:
        """Why it did not complete, in one line; empty where nothing was recorded."""
        error = self.record.error or {}
        text = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))
        return " ".join(text.split())

    @property
    def base(self) -> str:
        """Base that was trained: the hash of its weights as stored, else as held, else its name and revision."""
        model = self.record.model
        base = (
            model.get("stored_sha256")
            or model.get("weights_sha256")
            or f"{model.get('name_or_path')}@{model.get('revision')}"
        )
        return f"{base} ({model['quantization']})" if model.get("quantization") else str(base)

    @property
    def precision(self) -> str | None:
        """Precision it ran in: the one its machine recorded, else the one that was named; None where neither is."""
        return self.record.environment.get("precision") or (None if self._asked == "auto" else self._asked)

    @property
    def chosen_precision(self) -> str | None:
        """Precision that `hardware.precision=auto` came to on the run's machine; None where one was named."""
        return str(self.record.environment.get("precision")) if self._asked == "auto" else None

    @property
    def _asked(self) -> str | None:
        return (self.record.config.get("hardware") or {}).get("precision")

    @property
    def evaluations(self) -> dict[str, float]:
        """What lab.evaluate measured: a number per task and measure, by both names; none where it was not finite."""
        return {
            f"{task} {name}": float(value)
            for task, of_task in self.record.evaluations.items()
            for name, value in of_task.get("measures", {}).items()
            if value is not None
        }

    def value(self, name: str) -> float | None:
        """A metric, or a number of the record by its dotted path (`seconds.train`); None where not measured."""
        value: Any = self.record.metrics.get(name)
        if value is None and name in {item.name for item in fields(RunRecord)}:
            value = getattr(self.record, name)
        elif value is None and name.startswith("seconds."):
            value = self.record.seconds.get(name.removeprefix("seconds."))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and math.isfinite(value) else None

    @cached_property
    def curves(self) -> dict[str, list[float | None]]:
        """The columns of metrics.csv, None where a cell is empty; raises UsageError where it cannot be read."""
        return self._columns(METRICS)

    @cached_property
    def retention(self) -> dict[str, list[float | None]]:
        """The columns of retention.csv likewise; none where forgetting was not measured along training."""
        return self._columns(RETENTION)

    def _columns(self, name: str) -> dict[str, list[float | None]]:
        path = self._checked(name, "curves")
        if not path.exists():
            return {}
        columns: dict[str, list[float | None]] = {}
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    for key, cell in row.items():
                        value = float(cell) if cell else None
                        columns.setdefault(key, []).append(value if value is None or math.isfinite(value) else None)
        except (ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path} is not readable ({error}); its curves are left out.") from None
        return columns

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file of JSON lines, none without such a file; raises UsageError for one that is damaged."""
        path, what = self._checked(name, Path(name).stem), Path(name).stem
        try:
            return (
                [record.parse(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
            )
        except ValueError as error:
            raise UsageError(f"{path} is not readable ({error}); its {what} are left out.") from None

    def _checked(self, name: str, what: str) -> Path:
        """A file of the run; raises UsageError where a completed run's is not the one that was recorded."""
        path = self.path / name
        record.check_own(path)
        recorded = self.record.files.get(name) if self.status == "completed" else None
        if recorded is not None and (fault := run_files.damage(path, recorded, whole=True)) is not None:
            raise UsageError(f"{fault}; its {what} are left out.")
        return path

    def curve(self, column: str, over: str = "step") -> tuple[list[float], list[float]]:
        """The rows of metrics.csv where both columns have a value, as (x, y)."""
        xs, ys = self.curves.get(over, []), self.curves.get(column, [])
        both = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
        return [x for x, _ in both], [y for _, y in both]


def load_run(run_dir: str | Path) -> Run:
    """The run in a directory; raises UsageError where it holds no readable record."""
    path = Path(at_home(str(run_dir))).resolve()
    read = record.read(path)
    status = read.status
    if status == "running" and not record.is_live(path):
        read = record.read(path)  # it may have ended since: record and status are of one read
        status = "interrupted" if read.status == "running" else read.status
    fault = _fault(read)
    if fault:
        raise UsageError(f"{path / record.RESULT} {fault}; was it edited by hand?")
    return Run(path, read, status)


def _fault(read: RunRecord) -> str | None:
    """Contradiction of the schema in a record that is valid JSON; None where there is none."""
    for name in _DICTS:
        if not isinstance(getattr(read, name), dict):
            return f"has {name} = {getattr(read, name)!r}, not a mapping"
    for name in _COUNTS:
        value = getattr(read, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            return f"has {name} = {value!r}, not a whole number"
    for name in _TEXT:
        if not isinstance(getattr(read, name), str | None):
            return f"has {name} = {getattr(read, name)!r}, not text"
    for task, of_task in read.evaluations.items():
        if not isinstance(of_task, dict) or not isinstance(of_task.get("measures"), dict):
            return f"has evaluations of {task} without measures"
    measured = [of_task["measures"] for of_task in read.evaluations.values()]
    for group in (read.metrics, read.seconds, read.ranks, *measured):
        for name, value in group.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                return f"has {name} = {value!r}, not a number"
            if isinstance(value, float) and not math.isfinite(value):
                return f"has {name} = {value!r}, which strict JSON does not know"
    if read.error is not None and not isinstance(read.error, dict):
        return f"has error = {read.error!r}, not a mapping"
    return None
