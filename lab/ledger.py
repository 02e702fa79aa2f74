"""The spectral rows of a run on disk: what a policy saw, and all that replay reads. No torch, no lightning.

`ledger/rows.jsonl`: a line per layer and tick, `<crc32 of the rest> <JSON>`, arrays as base64 of little-endian bytes;
the first line is the header. Lines are appended whole and never rewritten, so that a kill costs at most the last one,
and a reader knows that it did.
"""

import base64
import dataclasses
import json
import os
import types
import typing
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lab import record
from lab.errors import UsageError, refused, visible
from lab.spectral.diagnosis import Diagnosis

SCHEMA = 1
FOLDER, FILE = "ledger", "rows.jsonl"
NAME = f"{FOLDER}/{FILE}"  # in the run directory
Mode = Literal["warmup", "full", "guard", "probation", "low_rank", "hold", "locked"]


@dataclass(frozen=True)
class Trial:
    """A trial of a layer at a rank, on the step's last micro-batches: made, measured and undone to the bit."""

    rank: int
    loss_before: float | None  # nats a token, as the weights are
    loss_after: float | None  # with what the layer would come to: its truncation; for a delta the same
    outside: float | None  # share of the gradient's energy that the pair could not move; None without a gradient

    @property
    def jump(self) -> float | None:
        """What the layer's new form costs, nats a token; None where it was not measured, or is not finite."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_after - self.loss_before


@dataclass(frozen=True, kw_only=True)
class Row(Diagnosis):
    """One layer at one tick: what was measured, and what the layer was at that moment."""

    step: int  # optimizer steps done before the tick's step
    layer: str
    mode: Mode  # read back from the model
    rank: int | None  # trainable rank it has; None in full mode
    loss: float | None = None  # mean training loss since the last tick, nats a token; as the next, absent in old rows
    lr_factor: float | None = None  # of the schedule on the learning rate, at the tick's step
    outside: float | None = None  # of a low-rank layer: share of ∂L/∂W's energy that the pair cannot move
    trial: Trial | None = None  # where the policy asked for one


def row_of(diagnosis: Diagnosis, *, step: int, layer: str, mode: Mode, rank: int | None, **more: float | None) -> Row:
    """The ledger row of a diagnosis, with `loss`, `lr_factor` and `outside` where they are known."""
    return Row(**vars(diagnosis), step=step, layer=layer, mode=mode, rank=rank, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recorded:
    """A ledger as it is read back."""

    header: dict[str, Any]  # of the writer: the policy's settings, targets with role, depth and shape
    rows: list[Row]  # in the order of writing: by step, then by layer
    cut: bool  # True where the last line was not whole and was left out

    def by_layer(self) -> dict[str, list[Row]]:
        """The rows of each layer, in step order."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.layer, []).append(row)
        return rows


class Ledger:
    """A run's ledger, open for appending."""

    def __init__(self, run_dir: Path, header: Mapping[str, Any]) -> None:
        """Start the ledger, or go on with the one that is there; call `cut_back` first when resuming."""
        self.path = Path(run_dir) / FOLDER / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or self.path.stat().st_size == 0:
            self._write(_line({"schema": SCHEMA, **header}))

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows of a tick with one write, so that other writers and kills fall between ticks."""
        self._write(b"".join(_line(_encode(row)) for row in rows))

    def _write(self, data: bytes) -> None:
        try:
            with open(self.path, "ab", buffering=0) as file:
                written = file.write(data)
        except OSError as error:
            raise UsageError(
                f"could not write {self.path}: {error.strerror}; free space and resume the run."
            ) from error
        if written != len(data):
            raise UsageError(f"could not write {self.path}: the disk took {written} of {len(data)} bytes.")


def exists(run_dir: Path) -> bool:
    """True where the run kept a ledger."""
    return (Path(run_dir) / FOLDER / FILE).is_file()


def read(run_dir: Path) -> Recorded:
    """All whole rows of a run's ledger.

    A last line that is not whole is left out and said so in `cut`. Raises UsageError for a run without a ledger,
    another schema, and damage before the last line.
    """
    path = Path(run_dir) / FOLDER / FILE
    try:
        lines, cut = _whole_lines(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{run_dir} holds no ledger; run with svd_policy=observe, or a policy that decides, to keep one."
        ) from None
    except OSError as error:
        raise refused(path, error) from None
    if not lines or lines[0].get("schema") != SCHEMA:
        schema = lines[0].get("schema") if lines else "no header"
        raise UsageError(f"{path} has schema {schema!r}; this version reads schema {SCHEMA}.")
    try:
        rows = [_decode(Row, line) for line in lines[1:]]
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} holds a row that is none ({error}); restore the file.") from None
    for row in rows:
        if not isinstance(row.layer, str) or visible(row.layer) != row.layer or type(row.step) is not int:
            raise UsageError(f"{path} holds a row of step {row.step!r} and layer {row.layer!r}; restore the file.")
    return Recorded(lines[0], rows, cut)


def cut_back(run_dir: Path, step: int) -> None:
    """Drop a tail that is not whole and the rows of later steps, so that a resumed run appends what it repeats."""
    path = Path(run_dir) / FOLDER / FILE
    if not path.is_file():
        return
    keep = 0
    with open(path, "rb") as file:
        for number, data in enumerate(file, 1):
            line = _parse(data)
            if line is None and file.read(1):
                raise UsageError(f"line {number} of {path} is damaged; restore the file, or start the run anew.")
            if line is None or (number > 1 and line["step"] > step):
                break
            keep += len(data)
    os.truncate(path, keep)


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(data: bytes) -> dict[str, Any] | None:
    """The JSON of a line, or None where the line is not whole."""
    checksum, _, text = data.rstrip(b"\n").partition(b" ")
    if not data.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        value = record.parse(text.decode())
    except ValueError as error:
        raise UsageError(f"a ledger has a line that is no JSON of ours ({error}); restore the file.") from None
    if not isinstance(value, dict):
        raise UsageError("a ledger has a line that is no mapping; restore the file.")
    return value


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    raw = path.read_bytes().splitlines(keepends=True)
    lines: list[dict[str, Any]] = []
    for number, data in enumerate(raw, 1):
        line = _parse(data)
        if line is None and number == len(raw):
            return lines, True
        if line is None:
            raise UsageError(
                f"line {number} of {path} is damaged; restore the file, or keep the {number - 1} lines above."
            )
        lines.append(line)
    return lines, False


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {name: _encode(held) for name, held in fields if held is not None}
    if isinstance(value, np.ndarray):
        return base64.b64encode(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes()).decode()
    return value


def _decode(kind: type, value: Mapping[str, Any]) -> Any:
    """A dataclass from its JSON; a field that was None is absent there."""
    fields = {}
    for name, hint in _hints(kind).items():
        fields[name] = _decode_field(hint, value[name]) if name in value else None
    return kind(**fields)


def _decode_field(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type, hint), value)
    if typing.get_origin(hint) is np.ndarray:
        dtype = typing.get_args(typing.get_args(hint)[1])[0]
        return np.frombuffer(base64.b64decode(value), dtype=np.dtype(dtype).newbyteorder("<")).astype(dtype)
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return value


_known: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    """Type of each field, with `| None` taken off."""
    if kind not in _known:
        _known[kind] = {name: _bare(hint) for name, hint in typing.get_type_hints(kind).items()}
    return _known[kind]


def _bare(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        some: Sequence[Any] = [part for part in typing.get_args(hint) if part is not type(None)]
        return some[0]
    return hint
