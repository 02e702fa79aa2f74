"""metrics.csv and files like it: a row per logged step, written as it happens and cut back on resume."""

import os
from collections.abc import Sequence
from pathlib import Path

from lab.errors import UsageError
from lab.files import write_atomically

COLUMNS = ("step", "tokens", "train_loss", "val_loss", "val_bpb", "lr", "grad_norm", "tokens_per_second", "seconds")


class MetricsFile:
    """The file and its columns; a value nobody measured is an empty field."""

    def __init__(self, run_dir: Path, name: str = "metrics.csv", columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = run_dir / name, columns
        if not self.path.exists():
            self._begin([])

    def start(self, row: dict[str, float | int | None]) -> None:
        """Begin anew with one row, whatever an earlier start that reached no checkpoint had written."""
        self._begin([self._line(row)])

    def append(self, row: dict[str, float | int | None]) -> None:
        """Add one row; floats keep all their digits, so that runs can be compared bitwise."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._line(row))

    def cut_back(self, step: int) -> None:
        """Cut off the rows behind a step, and a last line that was cut short.

        Raises UsageError naming the line where another one is damaged.
        """
        keep = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                at = self._step_of(line, number)
                if at is None and (number == 1 or file.read(1)):
                    raise UsageError(f"line {number} of {self.path} is damaged; restore it, or start the run anew.")
                if at is None or at > step:
                    break
                keep += len(line)
        os.truncate(self.path, keep)

    def row_at(self, step: int) -> dict[str, float] | None:
        """The values of a step's row, None where it has none; a file that was cut back ends with it."""
        cells = self.path.read_text(encoding="utf-8").splitlines()[-1].split(",")
        if cells[0] != str(step):
            return None
        return {name: float(cell) for name, cell in zip(self.columns, cells, strict=True) if cell}

    def rows(self) -> list[dict[str, float]]:
        """The values of every row, by column."""
        lines = self.path.read_text(encoding="utf-8").splitlines()[1:]
        cells = (zip(self.columns, line.split(","), strict=True) for line in lines)
        return [{name: float(cell) for name, cell in row if cell} for row in cells]

    def _step_of(self, line: bytes, number: int) -> int | None:
        """The step of a line, -1 of the header; None where it is not whole."""
        cells = line.decode(errors="replace").rstrip("\r\n").split(",")
        if not line.endswith(b"\n") or len(cells) != len(self.columns):
            return None
        if number == 1:
            return -1 if cells == list(self.columns) else None
        return int(cells[0]) if cells[0].isdigit() and all(map(_is_value, cells)) else None

    def _line(self, row: dict[str, float | int | None]) -> str:
        assert set(row) <= set(self.columns), set(row) - set(self.columns)
        return ",".join(_text(row.get(column)) for column in self.columns) + "\n"

    def _begin(self, lines: Sequence[str]) -> None:
        text = ",".join(self.columns) + "\n" + "".join(lines)
        write_atomically(self.path, lambda temporary: temporary.write_bytes(text.encode()))


def _is_value(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def _text(value: float | int | None) -> str:
    return "" if value is None else repr(value)
